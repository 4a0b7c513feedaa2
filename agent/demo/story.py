"""The steps of `resource-agent demo`: each makes something happen and reads that it did.

A step returns what it saw. One that did not see what it should raises StepError, an error of the
bus, or runs into its deadline. `Story.sabotage` names the step that is to fail: it is really
broken (a service not started, a file damaged), never just reported as broken.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from agent import human
from agent.assembly import Place
from agent.bus import Bus, connect
from agent.client import CacheClient, ResourceAgent
from agent.collectors.simulated_engines import SimulatedEngines
from agent.demo.parts import StepError, expecting, publish_for_ever, real_texts
from agent.nats_server.binary import server_version
from agent.nats_server.private import PrivateServer
from agent.runner import StopRequest, running
from schemas.api import ArchiveList, ArchiveStatus, NamespaceStats
from schemas.archive import Restored, Stored, StoredEntry
from schemas.engines import EngineMetrics
from schemas.lifecycle import ROLES
from schemas.metrics import GpuMetrics, HostMetrics
from schemas.scaling import Recommendation

S = TypeVar("S", bound=msgspec.Struct)

POOL = "demo-pool"
ENGINES = 2
OVERLOAD = 3.0
"""Requests arriving, over what the simulated engines can serve."""
LOOK_SECONDS = 0.02
REQUEST_SECONDS = 5.0
FIRST_TEXTS = 10
RAM_FILLS = 3
"""The values put are so many times as large as the RAM of the cache."""
MIB = 1024 * 1024

NOT_STARTED = {"metrics": "agent", "cache": "cache", "archive": "archive"}
"""Step to be broken → the service that is not started."""


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """What a step saw: a text for people, figures in base units."""

    text: str
    figures: Mapping[str, Any]


@dataclasses.dataclass(slots=True)
class Story:
    """What the steps share. `stack` holds server, services and connections until the end."""

    place: Place
    binary: Path
    sabotage: str | None
    stack: contextlib.AsyncExitStack
    texts: dict[str, bytes] = dataclasses.field(default_factory=dict)
    archived: list[StoredEntry] = dataclasses.field(default_factory=list)
    _bus: Bus | None = None

    @property
    def bus(self) -> Bus:
        """The demo's own connection, there after the first step."""
        if self._bus is None:
            raise StepError("there is no server")
        return self._bus

    async def server(self) -> Seen:
        """A private server, and every service on it."""
        binary = Path("/bin/false") if self.sabotage == "server" else self.binary
        version = ".".join(map(str, await asyncio.to_thread(server_version, binary)))
        settings = self.place.settings
        server = PrivateServer(
            self.place.state_dir, binary=binary, root=settings.root, settings=settings.server
        )
        started = time.monotonic()
        await self.stack.enter_async_context(server)
        server_seconds = time.monotonic() - started
        roles = [role for role in ROLES if role != NOT_STARTED.get(self.sabotage or "")]
        services = await self.stack.enter_async_context(
            running(server.url, roles, self.place, StopRequest())
        )
        self._bus = await connect(server.url, name="demo", root=settings.root)
        await self.stack.enter_async_context(self._bus)
        ready_seconds = time.monotonic() - started
        return Seen(
            f"nats-server {version} on {server.public_url} after {human.duration(server_seconds)}, "
            f"{len(services)} services ready after {human.duration(ready_seconds)}",
            {
                "nats_server_version": version,
                "services": sorted(services),
                "server_seconds": server_seconds,
                "ready_seconds": ready_seconds,
            },
        )

    async def metrics(self) -> Seen:
        """This machine's own metrics, and those of two simulated GPUs."""
        async with (
            expecting(self.bus, HostMetrics, _is_measured) as next_host,
            expecting(self.bus, GpuMetrics, lambda gpu: gpu.simulated) as next_gpu,
        ):
            host, gpu = (await next_host).message, (await next_gpu).message
        if host.cpu is None or host.memory is None:
            raise StepError("CPU and memory were not measured")
        cpu_ratio, memory = host.cpu.utilization_ratio or 0.0, host.memory
        return Seen(
            f"{host.node_name}: CPU {cpu_ratio:.0%} of {host.cpu.logical_cores} cores, memory "
            f"{memory.utilization_ratio:.0%} of {human.size(memory.total_bytes)}, "
            f"file systems: {len(host.filesystems or ())}, network interfaces: "
            f"{len(host.network or ())}\n"
            f"(simulated) {gpu.name}: {gpu.utilization_ratio or 0.0:.0%} busy, "
            f"{gpu.temperature_celsius or 0.0:.0f} °C, {gpu.power_watts or 0.0:.0f} W",
            {
                "node": host.node,
                "cpu_utilization_ratio": cpu_ratio,
                "cpu_logical_cores": host.cpu.logical_cores,
                "memory_utilization_ratio": memory.utilization_ratio,
                "memory_total_bytes": memory.total_bytes,
                "simulated": host.simulated,
                "gpu": {
                    "name": gpu.name,
                    "utilization_ratio": gpu.utilization_ratio,
                    "temperature_celsius": gpu.temperature_celsius,
                    "simulated": gpu.simulated,
                },
            },
        )

    async def advice(self) -> Seen:
        """An overload of simulated engines becomes advice to scale up."""
        engines = SimulatedEngines(ENGINES, node=self.place.instance, pool=POOL)
        capacity = ENGINES * engines.requests_per_second_max
        load = 0.0 if self.sabotage == "advice" else OVERLOAD * capacity
        engines.set_load(load)
        sent_at: dict[tuple[str, datetime], float] = {}
        async with expecting(self.bus, Recommendation, _is_scale_up) as next_advice:
            publishing = asyncio.create_task(publish_for_ever(self.bus, engines, sent_at))
            try:
                heard = await next_advice
            finally:
                publishing.cancel()
                await asyncio.gather(publishing, return_exceptions=True)
        advice = heard.message
        if not advice.simulated:
            raise StepError("advice from simulated metrics is not labelled simulated")
        completing = await self._completing_metric(advice)
        seconds = heard.at - sent_at[completing.engine, completing.observed_at]
        figures = {item.signal: (item.value, item.threshold) for item in advice.evidence}
        return Seen(
            f"(simulated) {load:.0f} requests/s for engines that can serve {capacity:.0f}:\n"
            f"{advice.text}\nAdvice {human.duration(seconds)} after the metric that completed the "
            f"condition was published; evidence: messages {advice.evidence[0].stream_from} to "
            f"{advice.evidence[0].stream_to} of FLEET_METRICS",
            {
                "recommendation_id": advice.recommendation_id,
                "replicas_from": advice.replicas_from,
                "replicas_to": advice.replicas_to,
                "metric_to_advice_seconds": seconds,
                "evidence": {name: value for name, (value, _) in figures.items()},
                "thresholds": {name: threshold for name, (_, threshold) in figures.items()},
                "confidence_ratio": advice.confidence_ratio,
                "simulated": advice.simulated,
            },
        )

    async def _completing_metric(self, advice: Recommendation) -> EngineMetrics:
        """The metric that brought the advice, read from the stream as the evidence says."""
        sequence = advice.evidence[0].stream_to
        deliveries = self.bus.read("METRICS", start_sequence=sequence)
        async with contextlib.aclosing(deliveries):
            async for delivery in deliveries:
                if delivery.sequence == sequence:
                    return msgspec.json.decode(delivery.payload, type=EngineMetrics)
                break
        raise StepError(f"FLEET_METRICS does not hold message {sequence}, which the evidence names")

    async def cache(self) -> Seen:
        """Real texts, put and got back."""
        limit_bytes = self.place.settings.cache.max_memory_mb * MIB
        self.texts = await asyncio.to_thread(real_texts, RAM_FILLS * MIB)
        first = dict(list(self.texts.items())[:FIRST_TEXTS])
        client, before = CacheClient(self.bus), await self._stats()
        for key, text in first.items():
            await client.put(key, text)
        slowest_seconds = 0.0
        for key, text in first.items():
            started = time.perf_counter()
            value = await client.get(key)
            slowest_seconds = max(slowest_seconds, time.perf_counter() - started)
            if value != text:
                raise StepError(f"{key} did not come back as it was put")
        hits = (await self._stats()).cache_hits - before.cache_hits
        if hits != len(first):
            raise StepError(f"{hits} hits for {len(first)} values")
        size_bytes = sum(map(len, first.values()))
        return Seen(
            f"{len(first)} texts ({human.size(size_bytes)} of Python's own sources) put and got "
            f"back byte for byte, {hits} hits, slowest {human.duration(slowest_seconds)}; "
            f"RAM for {human.size(limit_bytes)}",
            {
                "values": len(first),
                "bytes": size_bytes,
                "hits": hits,
                "slowest_get_seconds": slowest_seconds,
                "limit_bytes": limit_bytes,
            },
        )

    async def evict(self) -> Seen:
        """More texts than fit: the oldest fall out, and the eviction stream has them."""
        client = CacheClient(self.bus)
        for key, text in list(self.texts.items())[FIRST_TEXTS:]:
            await client.put(key, text)
        stats = await self._stats()
        if stats.evictions == 0:
            raise StepError(
                f"nothing was evicted: {human.size(stats.used_bytes)} used of "
                f"{human.size(stats.limit_bytes)}"
            )
        while stats.evictions_acknowledged < stats.evictions:
            await asyncio.sleep(LOOK_SECONDS)
            stats = await self._stats()
        if stats.evictions_lost:
            raise StepError(f"{stats.evictions_lost} evictions were lost")
        _, last_sequence = await self.bus.stream_bounds("EVICTIONS")
        if last_sequence < stats.evictions:
            raise StepError(f"{stats.evictions} evictions, FLEET_EVICTIONS took {last_sequence}")
        return Seen(
            f"{stats.puts} texts put into {human.size(stats.limit_bytes)}: {stats.evictions} "
            f"evicted, all acknowledged by FLEET_EVICTIONS, none lost",
            {
                "puts": stats.puts,
                "evictions": stats.evictions,
                "acknowledged": stats.evictions_acknowledged,
                "lost": stats.evictions_lost,
                "stream_sequence": last_sequence,
            },
        )

    async def archive(self) -> Seen:
        """Each eviction is announced as stored, and lies compressed in the archive's folder."""
        evictions = (await self._stats()).evictions
        status = await self._ask("api.archive.status.default", ArchiveStatus)
        while status.stored_total < evictions or status.pending:
            await asyncio.sleep(LOOK_SECONDS)
            status = await self._ask("api.archive.status.default", ArchiveStatus)
        announced = [
            entry
            async for delivery in self.bus.read("EVENTS", subject="archived.stored.default")
            for entry in msgspec.json.decode(delivery.payload, type=Stored).entries
        ]
        self.archived = sorted(announced, key=lambda entry: entry.size_bytes, reverse=True)
        files = self._object_files()
        on_disk_bytes = sum(file.stat().st_size for file in files)
        if not files or len(self.archived) != status.entries:
            raise StepError(
                f"{len(self.archived)} entries announced, {status.entries} in the index, "
                f"{len(files)} segments"
            )
        ratio = status.size_bytes / on_disk_bytes
        return Seen(
            f"{status.entries} entries: {human.size(status.size_bytes)} in "
            f"{human.size(on_disk_bytes)} on disk, compressed {ratio:.1f}:1",
            {
                "entries": status.entries,
                "bytes": status.size_bytes,
                "stored_bytes": on_disk_bytes,
                "compression_ratio": ratio,
            },
        )

    async def restore(self) -> Seen:
        """What RAM no longer has comes back through the archive."""
        client, key = CacheClient(self.bus), self.archived[0].key
        while await client.get(key, restore=False) is not None:  # noqa: ASYNC110 - no event
            await asyncio.sleep(LOOK_SECONDS)  # the outbox keeps it until the archive has it
        if self.sabotage == "restore":
            for file in self._object_files():
                file.write_bytes(bytes(file.stat().st_size))
        async with expecting(self.bus, Restored, lambda event: event.key == key) as announced:
            started = time.perf_counter()
            value = await client.get(key)
            seconds = time.perf_counter() - started
            if value != self.texts[key]:
                raise StepError(
                    f"{key} came back with other bytes" if value else f"{key} did not come back"
                )
            await announced
        return Seen(
            f"{key}: a miss in RAM, then {human.size(len(value))} from the archive, byte for byte, "
            f"in {human.duration(seconds)}",
            {"key": key, "bytes": len(value), "restore_seconds": seconds},
        )

    async def forget(self) -> Seen:
        """What is deleted does not come back: one key from RAM, one that only the archive has."""
        client = CacheClient(self.bus)
        keys = [self.archived[0].key, self.archived[1].key]

        def says_so(stored: Stored) -> bool:
            return any(entry.tombstone and entry.key == keys[1] for entry in stored.entries)

        async with expecting(self.bus, Stored, says_so) as told:
            for key in keys:
                if self.sabotage != "forget":
                    await client.delete(key)
                if await client.get(key) is not None:
                    raise StepError(f"{key} was deleted and came back")
            await told
        for key in keys:
            if await client.get(key) is not None:
                raise StepError(f"{key} was deleted and came back")
            listed = await self._ask(
                "api.archive.list.default", ArchiveList, {"prefix": key, "limit": 1}
            )
            if any(entry.key == key for entry in listed.entries):
                raise StepError(f"the archive still lists {key}")
        return Seen(
            f"{keys[0]} (in RAM and archive) and {keys[1]} (in the archive only) deleted: "
            "a miss each, and the archive no longer lists them",
            {"deleted": keys},
        )

    async def health(self) -> Seen:
        """All services say that they are ready."""
        if self.sabotage == "health":
            await self.bus.bucket("registry").delete(f"agent.{self.place.instance}")
        client = ResourceAgent(self.bus)
        while not (health := await client.health()).ready:
            missing = [role.text for role in health.roles if not role.ready]
            if self.sabotage == "health":
                raise StepError("; ".join(missing))
            await asyncio.sleep(LOOK_SECONDS)
        roles = [role.role for role in health.roles if role.ready]
        return Seen(
            f"{health.status}: {', '.join(roles)} ready",
            {"status": health.status, "ready": roles},
        )

    async def _stats(self) -> NamespaceStats:
        return await self._ask("cache.default.stats", NamespaceStats)

    async def _ask(self, subject: str, kind: type[S], body: Mapping[str, Any] | None = None) -> S:
        payload = msgspec.json.encode(body) if body else b""
        answer = await self.bus.request(subject, payload, timeout_seconds=REQUEST_SECONDS)
        return msgspec.json.decode(answer.payload, type=kind)

    def _object_files(self) -> list[Path]:
        return list(self.place.settings.archive_folder().glob("*.object"))


STEPS: Mapping[str, tuple[Callable[[Story], Awaitable[Seen]], str]] = {
    "server": (Story.server, "server and services did not start"),
    "metrics": (Story.metrics, "no metrics of this machine and its GPUs came over the bus"),
    "advice": (Story.advice, "no advice to scale up came over the bus"),
    "cache": (Story.cache, "the cache did not answer"),
    "evict": (Story.evict, "not every eviction was acknowledged"),
    "archive": (Story.archive, "the archive has not stored every eviction"),
    "restore": (Story.restore, "the archive did not hand the value back"),
    "forget": (Story.forget, "the archive did not hear of the deletion"),
    "health": (Story.health, "not every service is ready"),
}
"""In order: the step, and what to say when its deadline passes."""


def _is_measured(host: HostMetrics) -> bool:
    """Whether this is a real machine's sample; the first has no CPU use yet."""
    is_complete = host.cpu is not None and host.cpu.utilization_ratio is not None
    return is_complete and host.memory is not None and not host.simulated


def _is_scale_up(advice: Recommendation) -> bool:
    return advice.pool == POOL and advice.action == "scale_up"
