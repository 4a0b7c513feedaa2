"""Plays a KV trace against a live cache: match the chain, get what is there, put the rest."""

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from agent.batches import PutManyError
from agent.bus import Bus
from agent.client import CacheClient
from agent.replay.figures import CacheCounters, Figures
from agent.replay.trace import Trace, TraceRequest
from schemas.api import ArchiveStatus, NamespaceStats
from schemas.protocols import RequestError
from schemas.units import token

SAMPLE_SECONDS = 0.5
MAX_ERRORS_IN_A_ROW = 50
STATUS_SECONDS = 2.0
BUSY = 429


class ReplayOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a trace is played.

    `speed`: 1 = in the time of the trace, 10 = ten times as fast, infinite = without waiting.
    `key_prefix` stands before each block id; of its own for each replay, so that an earlier one's
    values are not taken for hits.
    """

    namespace: str = "default"
    clients: int = 8
    speed: float = math.inf
    value_bytes: int = 4096
    get_values: bool = True
    key_prefix: str = msgspec.field(default_factory=lambda: f"replay-{secrets.token_hex(3)}-")


class Replay:
    """One run of a trace. `figures` may be looked at while it goes."""

    def __init__(self, buses: Sequence[Bus], trace: Trace, options: ReplayOptions) -> None:
        self.figures = Figures()
        self.trace = trace
        self.options = options
        self._bus = buses[0]
        self._caches = [CacheClient(bus).of(options.namespace) for bus in buses]
        for cache in self._caches:
            cache.patient = False  # what the cache refuses is counted, not waited for
        self._filler = secrets.token_bytes(options.value_bytes)
        self._begun = 0.0
        self._before: CacheCounters | None = None
        self._errors_in_a_row = 0

    @property
    def elapsed_seconds(self) -> float:
        """Since the first request."""
        return time.perf_counter() - self._begun

    async def run(self, on_sample: Callable[[], None] = lambda: None) -> None:
        """Play it all, one request after the other on each connection.

        Raises:
            RequestError: nothing but errors.
        """
        self._before = await self._counters()
        self._begun = time.perf_counter()
        requests = iter(self.trace.requests)
        watching = asyncio.create_task(self._watch(on_sample))
        try:
            # A plain gather: its error is the caller's, not one of a group.
            await asyncio.gather(*(self._play(cache, requests) for cache in self._caches))
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            with contextlib.suppress(RequestError):
                await self._sample()

    async def _play(self, cache: CacheClient, requests: Iterator[TraceRequest]) -> None:
        first = self.trace.requests[0].at_seconds
        for request in requests:
            due = (request.at_seconds - first) / self.options.speed
            wait = due - self.elapsed_seconds
            if wait > 0:
                await asyncio.sleep(wait)
            elif due > 0:
                self.figures.late_seconds = max(self.figures.late_seconds, -wait)
            try:
                await self._one(cache, request)
            except RequestError as error:
                self.figures.errors[f"{error.code}: {error.text}"] += 1
                self._errors_in_a_row += 1
                if self._errors_in_a_row >= MAX_ERRORS_IN_A_ROW:
                    raise
            else:
                self._errors_in_a_row = 0

    async def _one(self, cache: CacheClient, request: TraceRequest) -> None:
        keys = [self.options.key_prefix + block for block in request.blocks]
        request_class = token(request.request_class)
        seconds: dict[str, float] = {}
        with _timed(seconds, "match"):
            hit = await cache.match(keys)
        if hit and self.options.get_values:
            with _timed(seconds, "get"):
                values = await cache.get_many(keys[:hit], request_class=request_class)
            for key, value in values.items():
                self.figures.wrong_values += value != self._value(key)
        if hit < len(keys):
            rest = {key: self._value(key) for key in keys[hit:]}
            with _timed(seconds, "put"):
                try:
                    await cache.put_many(
                        rest,
                        chain=True,
                        parent=keys[hit - 1] if hit else None,
                        request_class=request_class,
                    )
                except PutManyError as error:
                    if error.code != BUSY:
                        raise
                    self.figures.not_kept += len(error.errors)
        self.figures.add(request.request_class, len(keys), hit, seconds)

    def _value(self, key: str) -> bytes:
        """Different for each key, so that an answer can be checked."""
        head = key.encode()[: self.options.value_bytes]
        return head + self._filler[len(head) :]

    async def _watch(self, on_sample: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            await self._sample()
            on_sample()

    async def _sample(self) -> None:
        self.figures.sample(self.elapsed_seconds, _since(self._before, await self._counters()))

    async def _counters(self) -> CacheCounters:
        stats: NamespaceStats | None = None
        with contextlib.suppress(RequestError):
            stats = await self._caches[0].stats()
        archive: ArchiveStatus | None = None
        with contextlib.suppress(RequestError):
            answer = await self._bus.request(
                f"api.archive.status.{self.options.namespace}", timeout_seconds=STATUS_SECONDS
            )
            archive = msgspec.json.decode(answer.payload, type=ArchiveStatus)
        return CacheCounters(
            entries=stats.total_entries if stats else None,
            used_bytes=stats.used_bytes if stats else None,
            evictions=stats.evictions if stats else None,
            archived=archive.entries if archive else None,
            lost=stats.evictions_lost if stats else None,
            restores=stats.restores if stats else None,
        )


@contextlib.contextmanager
def _timed(seconds: dict[str, float], operation: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[operation] = time.perf_counter() - started


def _since(before: CacheCounters | None, now: CacheCounters) -> CacheCounters:
    """Totals as growth since `before`; sizes as they are."""

    def grown(name: str) -> int | None:
        old, new = getattr(before, name, None), getattr(now, name)
        return None if old is None or new is None else new - old

    return msgspec.structs.replace(
        now, **{name: grown(name) for name in ("evictions", "archived", "lost", "restores")}
    )
