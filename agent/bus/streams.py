"""The streams and buckets of the installation, created at start and checked ever after."""

import dataclasses
from collections.abc import Awaitable
from typing import Any

import nats.errors
import nats.js.api
import nats.js.errors
import structlog
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from agent.bus.bus import Bus
from agent.bus.cancellation import heed
from agent.bus.errors import BusError, raised_as
from schemas.protocols import PublishError

log = structlog.get_logger()

MIB = 1024 * 1024
HOUR = 3600.0
DAY = 24 * HOUR
MIN_STREAM_BYTES = 8 * MIB
STREAMS_SHARE = 0.95
"""Of the room there is: the server counts more than the messages' bytes."""


@dataclasses.dataclass(frozen=True, slots=True)
class StreamSpec:
    """One stream: what it keeps, how long, how much, and what happens when it is full."""

    name: str
    subjects: tuple[str, ...]
    max_bytes: int
    max_age_seconds: float
    work_queue: bool = False
    discard_new: bool = False
    max_per_subject: int = -1
    duplicate_window_seconds: float = 120.0
    allow_direct: bool = False


STREAMS: tuple[StreamSpec, ...] = (
    StreamSpec("METRICS", ("metrics.>",), 1024 * MIB, DAY),
    StreamSpec("ROLLUPS", ("rollup.>",), 512 * MIB, 90 * DAY, duplicate_window_seconds=600),
    StreamSpec(
        "EVENTS",
        ("analysis.>", "forecast.>", "archived.>"),
        256 * MIB,
        7 * DAY,
        max_per_subject=1000,
        duplicate_window_seconds=600,
    ),
    StreamSpec(
        "ALERTS", ("alert.>", "insight.>"), 64 * MIB, 90 * DAY, duplicate_window_seconds=600
    ),
    StreamSpec(
        "RECOMMENDATIONS",
        ("recommendation.>", "decision.>", "execution.>"),
        64 * MIB,
        90 * DAY,
        duplicate_window_seconds=DAY,
    ),
    StreamSpec("EVICTIONS", ("evicted.>",), 512 * MIB, 0, work_queue=True, discard_new=True),
    StreamSpec(
        "EVICTION_PARTS",
        ("evicted_part.>",),
        1024 * MIB,
        7 * DAY,
        discard_new=True,
        allow_direct=True,
    ),
    StreamSpec("DEAD", ("dead.>",), 64 * MIB, 0, discard_new=True),
)


@dataclasses.dataclass(frozen=True, slots=True)
class BucketSpec:
    """One bucket; `ttl_seconds` 0 = entries stay."""

    name: str
    ttl_seconds: float = 0.0
    history: int = 1
    max_bytes: int = 16 * MIB


BUCKETS: tuple[BucketSpec, ...] = (
    BucketSpec("registry", ttl_seconds=90),
    BucketSpec("config", history=10),
    BucketSpec("lease", ttl_seconds=6),
    BucketSpec("state"),
    BucketSpec("archive", max_bytes=64 * MIB),
)
BUCKETS_BYTES = sum(bucket.max_bytes for bucket in BUCKETS)


def scaled(specs: tuple[StreamSpec, ...], budget_bytes: int | None) -> tuple[StreamSpec, ...]:
    """`specs` with their sizes scaled down so that their sum fits `budget_bytes`.

    No stream goes below 8 MiB, as with less than that everything fails at the first burst; the
    larger ones make room for that.

    Raises:
        BusError: not even 8 MiB for each fit.
    """
    total = sum(spec.max_bytes for spec in specs)
    if budget_bytes is None or total <= budget_bytes:
        return specs
    if budget_bytes < len(specs) * MIN_STREAM_BYTES:
        raise BusError(
            f"the room leaves {max(0, budget_bytes) // MIB} MiB for the streams, they need at "
            f"least {len(specs) * MIN_STREAM_BYTES // MIB} MiB (and the buckets "
            f"{BUCKETS_BYTES // MIB} MiB); free disk space, raise the server's "
            "max_file_store, or raise the setting streams.budget_bytes"
        )
    smallest: set[str] = set()
    while True:
        rest = budget_bytes - len(smallest) * MIN_STREAM_BYTES
        share = rest / (sum(s.max_bytes for s in specs if s.name not in smallest) or 1)
        sizes = {
            spec.name: MIN_STREAM_BYTES if spec.name in smallest else int(spec.max_bytes * share)
            for spec in specs
        }
        too_small = {name for name, size in sizes.items() if size < MIN_STREAM_BYTES}
        if not too_small:
            return tuple(dataclasses.replace(spec, max_bytes=sizes[spec.name]) for spec in specs)
        smallest |= too_small


async def storage_limit(bus: Bus) -> int:
    """Bytes that this user may keep in streams; 0 or less: as many as there is room for.

    Raises:
        BusError: JetStream is off, or not for this user.
    """
    try:
        account = await heed(bus.jetstream.account_info())
    except (nats.errors.Error, OSError) as error:
        is_off = isinstance(error, nats.js.errors.ServiceUnavailableError)
        reason = "it is off" if is_off else str(error) or "no reply"
        raise BusError(
            f"{bus.names.root}: JetStream does not answer on this server ({reason}); "
            "start nats-server with -js, or give this user the rights on $JS.API.>"
        ) from error
    return int(account.limits.max_storage or -1) if account.limits else -1


async def ensure_streams(bus: Bus, *, budget_bytes: int | None = None) -> None:
    """Create what is missing and check what is there; safe from several services at once.

    An existing stream with other subjects, retention or discard is fatal, both named. Other
    limits are the operator's: left alone and reported.

    Raises:
        BusError: JetStream is off, storage does not suffice, or a stream is not ours.
    """
    limit = await storage_limit(bus)
    if limit > 0:
        budget_bytes = min(budget_bytes or limit, limit)
    room = "as much as its disk has" if limit <= 0 else f"{limit // MIB} MiB"
    if budget_bytes is not None:
        budget_bytes = int(budget_bytes * STREAMS_SHARE) - BUCKETS_BYTES
        room = f"{room}, {budget_bytes // MIB} MiB of it for all streams"
    for spec in scaled(STREAMS, budget_bytes):
        await _ensure_stream(bus, spec, room)
    for bucket in BUCKETS:
        await _ensure_bucket(bus, bucket)


async def ensure_bucket(bus: Bus, name: str) -> None:
    """Create one of our buckets where it is missing, as `ensure_streams` does at a start.

    Raises:
        PublishError: the server does not answer, or does not let this user.
    """
    try:
        await _ensure_bucket(bus, next(spec for spec in BUCKETS if spec.name == name))
    except BusError as error:
        raise PublishError(str(error)) from error


def _config(bus: Bus, spec: StreamSpec) -> StreamConfig:
    return StreamConfig(
        name=bus.names.stream(spec.name),
        subjects=[bus.names.absolute(subject) for subject in spec.subjects],
        retention=RetentionPolicy.WORK_QUEUE if spec.work_queue else RetentionPolicy.LIMITS,
        discard=DiscardPolicy.NEW if spec.discard_new else DiscardPolicy.OLD,
        storage=StorageType.FILE,
        max_bytes=spec.max_bytes,
        max_age=spec.max_age_seconds,
        max_msgs_per_subject=spec.max_per_subject,
        duplicate_window=spec.duplicate_window_seconds,
        allow_direct=spec.allow_direct,
        num_replicas=1,
    )


async def _ensure_stream(bus: Bus, spec: StreamSpec, room: str) -> None:
    wanted = _config(bus, spec)
    name = wanted.name or ""
    with raised_as(BusError, f"stream {name}: the server does not answer"):
        there = await _stream_config(bus, name)
        if there is None:
            refused = await _create(bus, name, bus.jetstream.add_stream(wanted))
            if refused:
                # Another service may have created it meanwhile: then the check below decides.
                there = await _stream_config(bus, name)
                if there is None:
                    raise BusError(
                        f"cannot create stream {name} of {spec.max_bytes // MIB} MiB: {refused} "
                        f"(the server offers {room}); free disk space, raise "
                        "the server's max_file_store, or lower the setting streams.budget_bytes"
                    )
    if there is not None:
        _compare(name, wanted, there)


async def _create(bus: Bus, stream: str, creation: Awaitable[object]) -> str:
    """Create a stream; returns the server's reason where it did not.

    Raises:
        BusError: this user may not, and nobody else has done it meanwhile.
    """
    try:
        await heed(creation)
    except nats.js.errors.APIError as error:
        return error.description or str(error)
    except nats.errors.TimeoutError as error:
        if not bus.denial(f"$JS.API.STREAM.CREATE.{stream}"):
            raise
        if await _stream_config(bus, stream) is None:
            raise BusError(
                f"{stream} is not there, and this user may not create it: start a service first "
                f"whose user may, such as `handlers` in deploy/nats.conf"
            ) from error
        return "this user may not"
    return ""


async def _stream_config(bus: Bus, name: str) -> StreamConfig | None:
    try:
        return (await heed(bus.jetstream.stream_info(name))).config
    except nats.js.errors.NotFoundError:
        return None


def _compare(name: str, wanted: StreamConfig, there: StreamConfig) -> None:
    def view(config: StreamConfig) -> dict[str, Any]:
        return {
            "subjects": sorted(config.subjects or []),
            "retention": str(getattr(config.retention, "value", config.retention)),
            "discard": str(getattr(config.discard, "value", config.discard)),
        }

    if view(wanted) != view(there):
        raise BusError(
            f"stream {name} exists but is not ours: it has {view(there)}, we need {view(wanted)}; "
            "remove it, or choose another subject root"
        )
    for field in ("max_bytes", "max_age", "duplicate_window", "max_msgs_per_subject"):
        ours, theirs = getattr(wanted, field), getattr(there, field)
        if (ours or 0) != (theirs or 0):
            log.info("stream_limit_differs", stream=name, limit=field, ours=ours, there=theirs)


async def _ensure_bucket(bus: Bus, spec: BucketSpec) -> None:
    name = bus.names.bucket(spec.name)
    with raised_as(BusError, f"bucket {name}: the server does not answer"):
        if await _stream_config(bus, f"KV_{name}") is not None:
            return
        refused = await _create(
            bus,
            f"KV_{name}",
            bus.jetstream.create_key_value(
                bucket=name, history=spec.history, ttl=spec.ttl_seconds, max_bytes=spec.max_bytes
            ),
        )
        if refused and await _stream_config(bus, f"KV_{name}") is None:
            raise BusError(f"cannot create bucket {name}: {refused}")
