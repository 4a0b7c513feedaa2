"""The cache service: one owner for each namespace, others ready to take over, empty."""

import asyncio
import contextlib
import dataclasses
import itertools
import secrets
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self

import structlog

from cache.archive_figures import ArchiveFigures
from cache.archive_link import ArchiveLink
from cache.batch import BatchEndpoints
from cache.classes import Classes
from cache.configuration import Configuration
from cache.endpoints import NamespaceEndpoints
from cache.files import Files
from cache.invalidations import Invalidations
from cache.large_evictions import LargeEvictions
from cache.lending import Lending
from cache.limits import configured
from cache.lmcache import LmcacheEndpoints
from cache.lmcache_front import LmcacheFront
from cache.namespace import Namespace
from cache.ownership import Ownership, OwnershipError
from cache.pump import Pump
from cache.room import Room
from cache.settings import MIB, CacheSettings
from cache.tags import TagDeletion
from cache.tuning import Tuning
from cache.uploads import Uploads
from cache.warming import WarmingQueue
from cache.warmup import Warmup
from schemas.engines import CacheMetrics
from schemas.lifecycle import Component, ComponentState
from schemas.protocols import (
    Bucket,
    Clock,
    Endpoint,
    Lease,
    Leases,
    Publisher,
    PublishError,
    Requester,
    Subscriber,
)
from schemas.units import SECOND_NS, instant

log = structlog.get_logger()

STANDBY_POLL_SECONDS = 1.0
STOP_SECONDS = 5.0
SWEEP_SECONDS = 5.0
CROWDED_RATIO = 0.8

Serve = Callable[[Sequence[Endpoint]], Awaitable[Callable[[], Awaitable[None]]]]
"""Serves endpoints and returns what drains them again."""


@dataclasses.dataclass(frozen=True, slots=True)
class CacheBus:
    """What the cache needs of the bus.

    `state` is the bucket for what outlives a restart, `config` the one for what people change, and
    `config_name` its name on the server.
    """

    publisher: Publisher
    requester: Requester
    subscriber: Subscriber
    state: Bucket
    config: Bucket
    config_name: str
    leases: Leases
    serve: Serve


@dataclasses.dataclass(slots=True)
class _Owned:
    """A namespace while this instance owns it."""

    namespace: Namespace
    link: ArchiveLink
    pump: Pump
    large: LargeEvictions
    uploads: Uploads
    lmcache: LmcacheEndpoints
    configuration: Configuration


class CacheService:
    """Serves the namespaces it owns; an async context manager.

    Whoever holds the lease `cache.<namespace>` serves that namespace; the others try once a
    second to take over, which they do empty. Values in RAM do not survive their owner. What was
    evicted does, once the eviction stream has acknowledged it. Data that was overwritten,
    deleted, cleared or has expired is never answered again: writes tell the archive before they
    are confirmed, and nothing is restored before the archive has heard them all.

    Leaving stops serving, answers what is in flight and publishes what the outbox holds, within
    `drain_timeout_seconds`; then the leases are given back.
    """

    name = "cache"

    def __init__(self, bus: CacheBus, settings: CacheSettings, instance: str, clock: Clock) -> None:
        self._bus = bus
        self._settings = settings
        self._instance = instance
        self._clock = clock
        boot = secrets.token_hex(6)
        self._message_ids = (f"{instance}.{boot}.{count}" for count in itertools.count(1))
        self._owned: dict[str, _Owned] = {}
        self._waiting: dict[str, str] = dict.fromkeys(settings.namespaces, "starting")
        self._archive_figures = ArchiveFigures(clock)
        self._front = LmcacheFront(self._lmcache_here, bus.requester)
        self._settled = asyncio.Event()
        self._stopping = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        self._work: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self.files = await asyncio.to_thread(Files, self._settings)
        self._stop_front = await self._bus.serve(self._front.endpoints())
        self._stop_figures = await self._archive_figures.listen(self._bus.subscriber)
        await self._tasks.__aenter__()
        self._work = [
            self._tasks.create_task(self._sweep_inbox()),
            *(
                self._tasks.create_task(self._own_or_stand_by(name))
                for name in self._settings.namespaces
            ),
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        await self._stop_front()
        await self._stop_figures()
        await asyncio.wait(self._work, timeout=self._settings.drain_timeout_seconds + STOP_SECONDS)
        for task in self._work:
            task.cancel()
        if isinstance(error, Exception):
            # The body's own error leaves as it is, not in a group.
            kind = error = trace = None
        try:
            await self._tasks.__aexit__(kind, error, trace)
        finally:
            await asyncio.to_thread(self.files.close)

    async def wait_ready(self) -> None:
        """Return once every namespace is served, by this instance or by another one."""
        await self._settled.wait()

    def is_owner(self, namespace: str) -> bool:
        """Whether this instance serves `namespace` now."""
        return namespace in self._owned

    def _lmcache_here(self, namespace: str) -> LmcacheEndpoints | None:
        owned = self._owned.get(namespace)
        return None if owned is None else owned.lmcache

    def components(self) -> list[Component]:
        """State of now: each namespace's lease, and its outbox and archive where it is owned."""
        components = [self._component("same_host", *self.files.state())]
        for name in self._settings.namespaces:
            if name not in self._owned:
                text = self._waiting[name]
                state: ComponentState = "ok" if text == "standby" else "failed"
                components.append(self._component(f"{name}.lease", state, text))
                continue
            owned = self._owned[name]
            components += [
                self._component(f"{name}.lease", "ok", "owner"),
                self._component(f"{name}.outbox", *_outbox_state(owned)),
                self._component(f"{name}.archive", *_archive_state(owned)),
                self._component(f"{name}.configuration", *_configuration_state(owned)),
            ]
        return components

    def counters(self) -> dict[str, float]:
        """Totals and sizes of the owned namespaces together."""
        totals: dict[str, float] = {
            "same_host_files": len(self.files.held),
            "same_host_bytes": sum(list(self.files.held.values())),
            "same_host_no_room_total": self.files.no_room,
        }
        for owned in self._owned.values():
            namespace, outbox = owned.namespace, owned.namespace.outbox
            values = {
                **{f"{k}_total": v for k, v in dataclasses.asdict(namespace.counters).items()},
                "evictions_acknowledged_total": outbox.acknowledged,
                "evictions_lost_total": outbox.lost,
                "evictions_lent_total": owned.large.lending.lent,
                "entries": len(namespace.memory),
                "used_bytes": namespace.memory.used_bytes,
                "outbox_entries": len(outbox),
                "outbox_bytes": outbox.used_bytes,
                "uploads": len(owned.uploads),
                "uploads_aborted_total": owned.uploads.aborted,
                "receiving_bytes": owned.uploads.room.used_bytes,
                "tombstones_unconfirmed": namespace.archived.unconfirmed,
            }
            for name, value in values.items():
                totals[name] = totals.get(name, 0.0) + value
        return totals

    async def _own_or_stand_by(self, name: str) -> None:
        while not self._stopping.is_set():
            lease = await self._bus.leases.try_acquire(f"cache.{name}")
            if lease is None:
                self._enter(name, "standby")
                await self._pause(STANDBY_POLL_SECONDS)
                continue
            try:
                await self._own(name, lease)
                self._waiting[name] = "no longer the owner"
            except (OwnershipError, PublishError) as error:
                self._waiting[name] = str(error)
                log.error("namespace_not_served", namespace=name, error=str(error))
            finally:
                self._owned.pop(name, None)
                await self._bus.leases.release(lease)
            await self._pause(STANDBY_POLL_SECONDS)

    async def _own(self, name: str, lease: Lease) -> None:
        settings, clock = self._settings.of(name), self._clock
        ownership = Ownership(self._bus.state, name)
        # Without the archive, what it holds grows outdated untold: it must not come back when
        # the archive is switched on again.
        await ownership.take_over(
            clock() // 1_000_000, new_generation=settings.archive_mode != "on"
        )
        configuration = Configuration(self._bus.config, self._bus.state, name, configured(settings))
        await configuration.load()
        namespace = Namespace(
            name,
            settings,
            configuration.current,
            epoch_ms=ownership.epoch_ms,
            generation=ownership.generation,
            message_ids=self._message_ids,
            clock=clock,
            files=self.files,
        )
        pump = Pump(namespace, self._bus.publisher, lease)
        lending = Lending(
            namespace,
            self._bus.publisher,
            self._bus.requester,
            lease,
            self._instance,
            settings.lend,
        )
        large = LargeEvictions(namespace, self._bus.publisher, lease, lending)
        room = Room(settings.uploads_max_bytes)
        link = ArchiveLink(
            namespace,
            self._bus.requester,
            self._bus.subscriber,
            clock,
            room,
            restore_timeout_seconds=settings.restore_timeout_seconds,
        )
        publisher, instance = self._bus.publisher, self._instance
        classes = Classes()
        invalidations = Invalidations(namespace, publisher, instance, clock)
        namespace.on_write = invalidations.note
        tags = TagDeletion(namespace, invalidations, lease, settings.tombstone_timeout_seconds)
        endpoints = NamespaceEndpoints(
            namespace,
            ownership,
            link,
            classes,
            tags,
            lease,
            publisher,
            settings,
            instance,
            clock,
            room,
        )
        link.adopt = endpoints.adopt
        warming = WarmingQueue(namespace, link, lease, publisher, settings, instance, clock)
        batches = BatchEndpoints(namespace, link, lease, classes, settings, clock, warming.prefetch)
        tuning = Tuning(namespace, configuration, publisher, instance, clock)
        warmup = Warmup(namespace, link, self._bus.state)
        lmcache = LmcacheEndpoints(
            namespace, tuning, warmup, lease, endpoints.clear, instance, clock
        )
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(namespace.holdings.remove_files)
            stack.callback(endpoints.uploads.close)
            stack.push_async_callback(await link.listen())
            stack.push_async_callback(
                await self._bus.subscriber.follow(
                    f"KV_{self._bus.config_name}",
                    configuration.heard,
                    subject=f"$KV.{self._bus.config_name}.cache.{name}",
                    last_per_subject=True,
                )
            )
            # Until all is flushed: what leaves RAM at the end is lent, too.
            stack.push_async_callback(await self._bus.serve(lending.endpoints()))
            served = (endpoints, batches, warming, lmcache)
            stop_serving = await self._bus.serve([e for some in served for e in some.endpoints()])
            self._owned[name] = _Owned(
                namespace, link, pump, large, endpoints.uploads, lmcache, configuration
            )
            self._enter(name, "owner")
            log.info("namespace_owned", namespace=name, generation=namespace.generation)
            async with asyncio.TaskGroup() as group:
                # A pump that returned has seen the lease lost: nothing is served without pumps.
                until_over = [
                    group.create_task(lease.wait_lost()),
                    group.create_task(self._until_stopping()),
                    *(group.create_task(pump.run()) for _ in range(settings.evictions_in_flight)),
                    group.create_task(large.run()),
                ]
                workers = [
                    group.create_task(self._publish_metrics(namespace, classes)),
                    group.create_task(link.run()),
                    group.create_task(tuning.run()),
                    group.create_task(warmup.run()),
                    group.create_task(invalidations.run()),
                    group.create_task(warming.run()),
                    *until_over,
                ]
                try:
                    await asyncio.wait(until_over, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    await stop_serving()
                    await invalidations.flush()
                    large.lending.hurry()
                    await self._flush(namespace, lease, warmup, settings)
                    for worker in workers:
                        worker.cancel()

    async def _sweep_inbox(self) -> None:
        while not self._stopping.is_set():
            await asyncio.to_thread(self.files.sweep)
            await self._pause(SWEEP_SECONDS)

    async def _until_stopping(self) -> None:
        await self._stopping.wait()

    async def _flush(
        self, namespace: Namespace, lease: Lease, warmup: Warmup, settings: CacheSettings
    ) -> None:
        """Publish what waits; nothing of an owner that lost its lease, for another one serves."""
        archive_all = settings.archive_on_stop and namespace.archiving
        if lease.held:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.drain_timeout_seconds):
                    await warmup.save_at_stop()
                    if archive_all:
                        await namespace.trimming.evict_everything("stop")
                    await namespace.outbox.drained()
        in_ram = len(namespace.memory) if archive_all else 0
        if namespace.outbox.pending or in_ram:
            log.error(
                "evictions_lost",
                namespace=namespace.name,
                pending=namespace.outbox.pending,
                in_ram=in_ram,
            )

    async def _publish_metrics(self, namespace: Namespace, classes: Classes) -> None:
        while True:
            with contextlib.suppress(PublishError):
                await self._bus.publisher.publish(self._metrics(namespace, classes))
            await asyncio.sleep(self._settings.metrics_interval_seconds)

    def _metrics(self, namespace: Namespace, classes: Classes) -> CacheMetrics:
        counters, outbox, memory = namespace.counters, namespace.outbox, namespace.memory
        archived = self._archive_figures.of(namespace.name)
        return CacheMetrics(
            instance=self._instance,
            namespace=namespace.name,
            observed_at=instant(self._clock()),
            policy=namespace.limits.config.eviction_policy,
            entries=len(memory),
            used_bytes=memory.used_bytes,
            limit_bytes=memory.limit_bytes,
            hits_total=counters.hits,
            misses_total=counters.misses,
            hit_ratio=counters.hit_ratio,
            puts_total=counters.puts,
            evictions_total=counters.evictions,
            evictions_acknowledged_total=outbox.acknowledged,
            evictions_lost_total=outbox.lost,
            restores_total=counters.restores,
            restores_declined_total=counters.restores_declined,
            restored_bytes_total=counters.restored_bytes,
            restored_cost_seconds_total=counters.restored_cost_seconds,
            outbox_entries=len(outbox),
            outbox_bytes=outbox.used_bytes,
            classes=classes.stats(),
            is_enabled=namespace.limits.config.enabled,
            evictions_returned_total=namespace.learner.returns,
            expired_lookups_total=memory.expired_lookups,
            expired_lookups_late_seconds_total=memory.expired_late_ns / SECOND_NS,
            expired_idle_byte_seconds_total=memory.expired_idle_byte_ns / SECOND_NS,
            archive=None if archived is None else archived.classes,
            archive_counted_since=None if archived is None else archived.counted_since,
        )

    def _component(self, name: str, state: ComponentState, text: str) -> Component:
        return Component(name=name, state=state, text=text, probed_at=instant(self._clock()))

    def _enter(self, name: str, state: str) -> None:
        self._waiting[name] = state
        if all(state in {"owner", "standby"} for state in self._waiting.values()):
            self._settled.set()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()


def _outbox_state(owned: _Owned) -> tuple[ComponentState, str]:
    outbox = owned.namespace.outbox
    used, room = outbox.used_bytes / MIB, outbox.max_bytes / MIB
    fill = f"{used:.1f} of {room:.0f} MiB, {outbox.pending} not acknowledged"
    error = owned.pump.error or owned.large.error
    if error:
        return "degraded", f"{error}; {fill}"
    crowded = outbox.pending_bytes > CROWDED_RATIO * outbox.max_bytes
    return ("degraded" if crowded else "ok"), fill


def _archive_state(owned: _Owned) -> tuple[ComponentState, str]:
    namespace = owned.namespace
    if not namespace.archiving:
        return "off", f"archive_mode is {namespace.archive_mode}"
    if owned.link.error:
        return "degraded", owned.link.error
    if not namespace.archived.caught_up:
        return "degraded", "no restores until the archive has worked off the eviction stream"
    if not namespace.archived.known:
        return "degraded", "the archive has not sent its list of keys"
    return "ok", f"{namespace.archived.unconfirmed} tombstones not confirmed"


def _configuration_state(owned: _Owned) -> tuple[ComponentState, str]:
    configuration, namespace = owned.configuration, owned.namespace
    if configuration.problem:
        return "degraded", f"{configuration.problem}; the last good one is in force"
    if configuration.ignored:
        fields = ", ".join(configuration.ignored)
        return "degraded", f"fields of a newer release do nothing here: {fields}"[:300]
    if namespace.limits.surplus_bytes:
        surplus = namespace.limits.surplus_bytes / MIB
        return "degraded", f"RAM is {surplus:.1f} MiB above max_size_mb and shrinks"
    text = f"version {configuration.version}" if configuration.version else "of the settings"
    return "ok", text if namespace.limits.config.enabled else f"{text}, enabled is off"
