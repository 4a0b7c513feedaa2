"""The endpoints `api.lmcache.<operation>.<namespace>` of one owned namespace."""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec

from cache.archived import HASH_BYTES, key_hash
from cache.configuration import (
    ConfigurationConflictError,
    ConfigurationError,
    read_fields,
)
from cache.entry import Entry
from cache.namespace import Namespace
from cache.settings import MIB
from cache.tuning import Tuning
from cache.warmup import Warmup
from schemas.api import ClearReply, Nothing
from schemas.lmcache import (
    LmcacheConfig,
    LmcacheConfigure,
    LmcacheEntry,
    LmcacheMetrics,
    LmcacheRequest,
    LmcacheState,
    LmcacheStatus,
    LmcacheStatusRequest,
    OptimizeReply,
)
from schemas.message import UNDECODABLE
from schemas.protocols import (
    Answer,
    Call,
    Clock,
    Endpoint,
    HandleCall,
    Lease,
    PublishError,
    RequestError,
)
from schemas.units import instant

T = TypeVar("T")
R = TypeVar("R", bound=LmcacheRequest)

_VERSION = re.compile(r"\d{1,18}", re.ASCII)

OPERATIONS: Mapping[str, tuple[type[msgspec.Struct], type[msgspec.Struct]]] = {
    "status": (LmcacheStatusRequest, LmcacheStatus),
    "metrics": (LmcacheRequest, LmcacheMetrics),
    "config": (LmcacheRequest, LmcacheConfig),
    "configure": (LmcacheConfigure, LmcacheConfig),
    "optimize": (LmcacheRequest, OptimizeReply),
    "clear": (LmcacheRequest, ClearReply),
}
"""What each takes and answers."""

SAVED_FORMULA = (
    "estimate: memory_saved_mb = value bytes of all hits / 1048576, what readers need not have "
    "computed and held again; memory_savings_percent = 100 * value bytes of all hits / (value "
    "bytes of all hits + value bytes of all puts)"
)


class LmcacheEndpoints:
    """Answers for one namespace while its lease is held, with 503 from the moment it is not."""

    def __init__(
        self,
        namespace: Namespace,
        tuning: Tuning,
        warmup: Warmup,
        lease: Lease,
        clear: Callable[[Nothing, Call], Awaitable[ClearReply]],
        instance: str,
        clock: Clock,
    ) -> None:
        self._namespace = namespace
        self._tuning = tuning
        self._warmup = warmup
        self._lease = lease
        self._clear = clear
        self._instance = instance
        self._clock = clock
        self.handlers: Mapping[str, HandleCall] = {
            "status": self._status,
            "metrics": self._metrics,
            "config": self._config,
            "configure": self._configure,
            "optimize": self._optimize,
            "clear": self._clear_all,
        }

    def endpoints(self) -> list[Endpoint]:
        """All six below `api.lmcache`, and config and optimize below `cache.<namespace>` too."""
        name = self._namespace.name
        endpoints = [
            Endpoint(
                f"lmcache_{operation}_{name}",
                f"api.lmcache.{operation}.{name}",
                handle,
                request_type=OPERATIONS[operation][0],
                reply_type=OPERATIONS[operation][1],
                statistics=self._latencies if operation == "metrics" else dict,
            )
            for operation, handle in self.handlers.items()
        ]
        return [
            *endpoints,
            Endpoint(
                f"cache_config_{name}",
                f"cache.{name}.config",
                self._configure,
                request_type=LmcacheConfigure,
                reply_type=LmcacheConfig,
            ),
            Endpoint(
                f"cache_optimize_{name}",
                f"cache.{name}.optimize",
                self._optimize,
                request_type=LmcacheRequest,
                reply_type=OptimizeReply,
            ),
        ]

    def _status(self, call: Call) -> Answer:
        asked = self._read(call, LmcacheStatusRequest)
        status = LmcacheStatus(
            timestamp=instant(self._clock()),
            instance_id=self._instance,
            metrics=self.metrics(),
            config=self._namespace.limits.config,
            top_entries=[_shown(entry) for entry in self._namespace.hot.top(asked.top)],
        )
        return self._versioned(status)

    def _metrics(self, call: Call) -> Answer:
        self._read(call, LmcacheRequest)
        return Answer(msgspec.json.encode(self.metrics()))

    def metrics(self) -> LmcacheMetrics:
        """Of now."""
        namespace = self._namespace
        counters, memory = namespace.counters, namespace.memory
        used_bytes, limit_bytes = memory.used_bytes, memory.limit_bytes
        hit, miss = namespace.latencies.hit, namespace.latencies.miss
        moved_bytes = counters.hit_bytes + counters.put_bytes

        def tokens(count: int) -> int | None:
            return count if namespace.holdings.has_seen_tokens else None

        return LmcacheMetrics(
            status=self._state(),
            enabled=namespace.limits.config.enabled,
            total_size_mb=limit_bytes / MIB,
            used_size_mb=used_bytes / MIB,
            available_size_mb=(limit_bytes - used_bytes) / MIB,
            utilization_percent=100 * used_bytes / limit_bytes,
            total_requests=counters.hits + counters.misses,
            cache_hits=counters.hits,
            cache_misses=counters.misses,
            hit_rate_percent=_percent(counters.hits, counters.hits + counters.misses),
            tokens_cached=tokens(memory.tokens),
            tokens_served=tokens(counters.tokens_served),
            tokens_computed=tokens(counters.tokens_computed),
            avg_latency_ms=_ms(hit.mean_seconds(miss)),
            cache_hit_latency_ms=_ms(hit.mean_seconds()),
            cache_miss_latency_ms=_ms(miss.mean_seconds()),
            memory_saved_mb=counters.hit_bytes / MIB,
            memory_savings_percent=_percent(counters.hit_bytes, moved_bytes),
            memory_saved_formula=SAVED_FORMULA,
        )

    def _config(self, call: Call) -> Answer:
        self._read(call, LmcacheRequest)
        return self._versioned(self._namespace.limits.config)

    async def _configure(self, call: Call) -> Answer:
        self._check_owned()
        try:
            changes = read_fields(call.payload.strip() or b"{}")
            self._check_namespace(changes.pop("namespace", None))
            await self._tuning.configure(changes, _expected_version(call))
        except ConfigurationError as error:
            raise RequestError(400, str(error)) from None
        except ConfigurationConflictError as error:
            raise RequestError(409, str(error)) from None
        except PublishError as error:
            raise RequestError(
                503, "the configuration could not be stored durably; ask what is in force"
            ) from error
        return self._versioned(self._namespace.limits.config)

    async def _optimize(self, call: Call) -> Answer:
        self._read(call, LmcacheRequest)
        return Answer(msgspec.json.encode(await self._tuning.optimize()))

    async def _clear_all(self, call: Call) -> Answer:
        self._read(call, LmcacheRequest)
        return Answer(msgspec.json.encode(await self._clear(Nothing(), call)))

    def _versioned(self, reply: msgspec.Struct) -> Answer:
        version = str(self._tuning.configuration.version)
        return Answer(msgspec.json.encode(reply), {"Fleet-Version": version})

    def _state(self) -> LmcacheState:
        if self._tuning.configuration.problem:
            return "error"
        if not self._namespace.limits.config.enabled:
            return "disabled"
        return "initializing" if self._warmup.is_running else "enabled"

    def _latencies(self) -> dict[str, Any]:
        """For `nats micro stats`."""
        latencies = self._namespace.latencies
        return {
            f"{name}_p{percent}_seconds": histogram.quantile_seconds(percent / 100)
            for name, histogram in (("hit", latencies.hit), ("miss", latencies.miss))
            for percent in (50, 95, 99)
        }

    def _read(self, call: Call, kind: type[R]) -> R:
        self._check_owned()
        request = read_request(call, kind)
        self._check_namespace(request.namespace)
        return request

    def _check_namespace(self, asked: object) -> None:
        if asked not in (None, self._namespace.name):
            raise RequestError(
                400, f"namespace is another one than the subject's, {self._namespace.name}"
            )

    def _check_owned(self) -> None:
        if not self._lease.held:
            raise RequestError(
                503, f"this instance does not own namespace {self._namespace.name}; ask again"
            )


def read_request(call: Call, kind: type[T]) -> T:
    """The body of `call`; an empty one has the defaults.

    Raises:
        RequestError: 400, it does not decode; the text names the field.
    """
    try:
        return msgspec.json.decode(call.payload.strip() or b"{}", type=kind)
    except UNDECODABLE as error:
        raise RequestError(400, f"bad request for {call.subject}: {error}") from None


def _expected_version(call: Call) -> int | None:
    text = call.headers.get("Fleet-Version")
    if text is None:
        return None
    if not _VERSION.fullmatch(text):
        raise RequestError(400, "header Fleet-Version must be a whole number")
    return int(text)


def _shown(entry: Entry) -> LmcacheEntry:
    is_prefix = entry.prefix_tokens is not None or entry.parent is not None
    return LmcacheEntry(
        entry_id=entry.key,
        prefix_hash=f"{key_hash(entry.key):0{2 * HASH_BYTES}x}" if is_prefix else None,
        token_count=entry.prefix_tokens,
        size_mb=entry.size_bytes / MIB,
        hit_count=entry.access_count,
        created_at=instant(entry.inserted_at_ns),
        last_accessed=instant(entry.last_accessed_ns),
    )


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
