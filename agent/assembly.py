"""Builds the services from settings; the only module that sees them all.

Each build function imports its service itself: a node agent must not pay for the others.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from agent.blocking import BlockingThread
from agent.bus import Bus, ensure_bucket, is_authenticated
from agent.bus.lease import BucketLeases
from agent.identity import Identity
from agent.instance import HealthSettings, Instance
from agent.language_model import make_model
from agent.settings import Settings, SettingsError
from agent.state_folder import StateFolderError
from schemas.lifecycle import Role


@dataclasses.dataclass(frozen=True, slots=True)
class Simulation:
    """What to simulate on this node: `8xH100`, `4@llama-3-70b`; None = nothing."""

    gpus: str | None = None
    engines: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where and as whom services run in this process."""

    settings: Settings
    identity: Identity
    instance: str
    simulation: Simulation = dataclasses.field(default_factory=Simulation)
    server_room_bytes: int | None = None

    @property
    def stream_budget_bytes(self) -> int | None:
        """Room for all streams: the setting's, or what our own server has if that is less."""
        rooms = (self.settings.streams.budget_bytes, self.server_room_bytes)
        return min((room for room in rooms if room is not None), default=None)

    @property
    def state_dir(self) -> Path:
        """The state folder."""
        return self.settings.state_folder()


def _instance(bus: Bus, role: Role, place: Place) -> Instance:
    table = place.settings.health
    return Instance(
        bus,
        role=role,
        name=place.instance,
        node=place.settings.node_token(),
        identity=place.identity,
        settings=HealthSettings(
            heartbeat_seconds=table.heartbeat_seconds,
            probe_seconds=table.probe_seconds,
            expected_roles=table.expected_roles,
        ),
        labels=place.settings.labels,
    )


@contextlib.asynccontextmanager
async def _leases(bus: Bus, role: Role, place: Place) -> AsyncIterator[BucketLeases]:
    owner = f"{role}.{place.instance}@{place.identity.folder}"
    leases = BucketLeases(bus.bucket("lease"), owner)
    try:
        yield leases
    finally:
        await leases.close()


def _host_root(settings: Settings) -> Path:
    root = Path(settings.agent.host_root)
    if root != Path("/") and not (root / "proc" / "stat").exists():
        raise SettingsError(
            f"setting agent.host_root = {str(root)!r}: there is no {root / 'proc' / 'stat'}; "
            f"mount the host's / there with all that is below it, like `-v /:{root}:ro,rslave`"
        )
    return root


@contextlib.asynccontextmanager
async def run_agent(bus: Bus, place: Place) -> AsyncIterator[Instance]:
    """The node agent."""
    from agent.collectors.filesystems import FilesystemProbe  # noqa: PLC0415 - see above
    from agent.collectors.gpu import GpuBackend  # noqa: PLC0415
    from agent.collectors.gpu_amd import AmdBackend  # noqa: PLC0415
    from agent.collectors.host import HostCollector  # noqa: PLC0415
    from agent.collectors.nvml.backend import NvmlBackend  # noqa: PLC0415
    from agent.collectors.simulated_engines import (  # noqa: PLC0415
        SimulatedEngines,
        parse_engines,
    )
    from agent.collectors.simulated_gpus import SimulatedGpus, parse_gpus  # noqa: PLC0415
    from agent.gpus import GpuSampler  # noqa: PLC0415
    from agent.scraping import EngineScraping  # noqa: PLC0415
    from agent.service import NodeAgent  # noqa: PLC0415

    settings = place.settings
    node, pool = settings.node_token(), settings.pool_token()
    labels = settings.labels
    engines: SimulatedEngines | None = None
    if place.simulation.engines is not None:
        count, model = parse_engines(place.simulation.engines)
        engines = SimulatedEngines(count, model, node=node, pool=pool)
    backends: list[GpuBackend]
    if place.simulation.gpus is not None:
        count, model = parse_gpus(place.simulation.gpus)
        backends = [
            SimulatedGpus(count, model, node=node, pool=pool, labels=labels, engines=engines)
        ]
    else:
        backends = [
            NvmlBackend(node=node, pool=pool, labels=labels),
            AmdBackend(node=node, pool=pool, labels=labels),
        ]
    gpus = GpuSampler(
        backends,
        timeout_seconds=settings.agent.gpu_timeout_seconds,
        rescan_seconds=settings.agent.gpu_rescan_seconds,
    )
    root = _host_root(settings)
    # One for both collectors: a mount that hangs may cost one thread, not two.
    filesystems = FilesystemProbe(settings.agent.filesystems, root=root)
    host, query_host = (
        HostCollector(
            node=node,
            node_name=settings.node_name(),
            pool=pool,
            labels=labels,
            process_limit=settings.agent.process_limit,
            root=root,
            filesystems=filesystems,
        )
        for _ in range(2)
    )
    service = NodeAgent(
        bus,
        settings.agent,
        node=node,
        host=host,
        query_host=query_host,
        gpus=gpus,
        engines=engines,
    )
    scraping = EngineScraping(
        bus,
        bus,
        settings.agent.engines,
        node=node,
        pool=pool,
        labels=labels,
        bucket=bus.names.bucket("config"),
        environ=os.environ,
        local_gpus=service.gpu_uuids,
    )
    async with _instance(bus, "agent", place) as instance:
        instance.watch(
            lambda: [*service.components(), *scraping.components()],
            lambda: {**service.counters, **scraping.counters},
        )
        async with service, scraping:
            drain = await instance.serve(service.endpoints())
            await service.wait_ready()
            await instance.ready()
            try:
                yield instance
            finally:
                await drain()


@contextlib.asynccontextmanager
async def run_handlers(bus: Bus, place: Place) -> AsyncIterator[Instance]:
    """Handlers and the query endpoints for the whole fleet."""
    from handlers import alert_book, default_handlers  # noqa: PLC0415
    from handlers.admission import Admission  # noqa: PLC0415
    from handlers.alerting.configuration import AlertConfiguration  # noqa: PLC0415
    from handlers.alerting.endpoints import AlertEndpoints  # noqa: PLC0415
    from handlers.alerting.open_alerts import OpenAlerts  # noqa: PLC0415
    from handlers.decisions.book import DecisionReader  # noqa: PLC0415
    from handlers.decisions.execution import execution_endpoints  # noqa: PLC0415
    from handlers.foreign import ForeignMessages  # noqa: PLC0415
    from handlers.insights.service import InsightService  # noqa: PLC0415
    from handlers.insights.sources import Sources  # noqa: PLC0415
    from handlers.insights.writer import Writer  # noqa: PLC0415
    from handlers.queries.latest import LatestStore  # noqa: PLC0415
    from handlers.queries.run import Runs  # noqa: PLC0415
    from handlers.queries.service import query_endpoints  # noqa: PLC0415
    from handlers.queries.standing import Standing  # noqa: PLC0415
    from handlers.queries.stream_reader import StreamReader  # noqa: PLC0415
    from handlers.runtime import HandlersRuntime  # noqa: PLC0415
    from handlers.stream_watch import StreamWatch  # noqa: PLC0415

    settings = place.settings.handlers
    table = place.settings.insights
    store = LatestStore(settings.queries.forget_seconds)
    try:
        book = alert_book(settings)
    except ValueError as error:
        raise SettingsError(f"setting handlers.alerts.rules: {error}") from error
    config_name = bus.names.bucket("config")
    model, no_model = make_model(place.settings, os.environ)
    history = await bus.beside("history")
    async with (
        _instance(bus, "handlers", place) as instance,
        _leases(bus, "handlers", place) as leases,
        AlertConfiguration(book, bus.bucket("config"), bus, config_name) as configuration,
        DecisionReader(bus, time.time_ns) as decisions,
        HandlersRuntime(
            publisher=bus,
            subscriber=bus,
            history=history,
            state=bus.bucket("state"),
            leases=leases,
            make_handlers=lambda: default_handlers(settings, book, decisions.book),
            slots=settings.slots,
            name=place.instance,
            registered=lambda: instance.registry.names("handlers"),
            admission=Admission(settings.max_nodes, settings.max_pools),
            observe=store.accept,
        ) as runtime,
        OpenAlerts(bus, ForeignMessages(runtime.counters, time.time_ns)) as open_alerts,
        StreamWatch(bus, bus, bus.names.stream, runtime.judges_fleet, time.time_ns),
        contextlib.AsyncExitStack() as stack,
    ):
        if model is not None:
            stack.push_async_callback(model.close)
        foreign = ForeignMessages(runtime.counters, time.time_ns)
        alerts = AlertEndpoints(
            configuration, open_alerts, bus, settings.queries, time.time_ns, foreign
        )
        reader = StreamReader(bus, settings.queries, foreign)
        standing = Standing(reader, settings.queries, time.time_ns)
        insights = InsightService(
            bus,
            leases,
            Sources(reader, standing, open_alerts.all, time.time_ns),
            Writer(model, table, no_model),
            table,
            time.time_ns,
        )
        await stack.enter_async_context(insights)
        instance.watch(
            lambda: [
                *runtime.components(),
                configuration.component(time.time_ns()),
                insights.component(),
            ],
            lambda: dict(runtime.counters),
        )
        queries = query_endpoints(store, bus, time.time_ns, settings, runtime.counters)
        execution = execution_endpoints(
            bus,
            bus,
            time.time_ns,
            settings.queries,
            runtime.counters,
            lambda: instance.registry.count_live("executor"),
        )
        runs = Runs(
            bus,
            store,
            standing,
            alerts,
            None if table.enabled == "off" else insights,
            time.time_ns,
            settings.queries.run_step_seconds,
            instance.service_id,
        )
        drain = await instance.serve(
            [*queries, *alerts.endpoints(), *execution, insights.endpoint(), runs.endpoint()]
        )
        await runtime.wait_started()
        await instance.ready()
        try:
            yield instance
        finally:
            await drain()


@contextlib.asynccontextmanager
async def run_cache(bus: Bus, place: Place) -> AsyncIterator[Instance]:
    """The cache."""
    from cache.service import CacheBus, CacheService  # noqa: PLC0415

    async with (
        _instance(bus, "cache", place) as instance,
        _leases(bus, "cache", place) as leases,
    ):
        parts = CacheBus(
            publisher=bus,
            requester=bus,
            subscriber=bus,
            state=bus.bucket("state"),
            config=bus.bucket("config"),
            config_name=bus.names.bucket("config"),
            leases=leases,
            serve=instance.serve,
        )
        service = CacheService(parts, place.settings.cache, place.instance, time.time_ns)
        async with service:
            instance.watch(service.components, service.counters)
            await service.wait_ready()
            await instance.ready()
            yield instance


async def check_archive_store(settings: Settings) -> tuple[str, list[str]]:
    """What the archive's store is, and all that this user, on this machine, may not do there."""
    from archive.checkup import checked  # noqa: PLC0415

    return await checked(settings.archive, settings.archive_folder(), BlockingThread)


async def compare_archive_owner(bus: Bus, settings: Settings) -> tuple[str, str]:
    """Whose the archive's store is, and what is wrong with that; both empty: nothing is known."""
    from archive.checkup import compared  # noqa: PLC0415

    folder, state, index = settings.archive_folder(), bus.bucket("state"), bus.bucket("archive")
    return await compared(settings.archive, folder, BlockingThread, state, index)


@contextlib.asynccontextmanager
async def run_archive(bus: Bus, place: Place) -> AsyncIterator[Instance]:
    """The archive, in a local folder or in S3.

    A store that fails is reported by health and tried again; settings that cannot be right are
    refused.
    """
    from archive.service import ArchiveBus, ArchiveService  # noqa: PLC0415
    from archive.store import StoreError  # noqa: PLC0415
    from archive.stores import make_store  # noqa: PLC0415

    settings = place.settings
    store = make_store(settings.archive, settings.archive_folder(), BlockingThread)
    async with (
        _instance(bus, "archive", place) as instance,
        _leases(bus, "archive", place) as leases,
        contextlib.AsyncExitStack() as stack,
    ):
        parts = ArchiveBus(
            publisher=bus,
            queue=bus,
            parts=bus,
            index=bus.bucket("archive"),
            make_index=lambda: ensure_bucket(bus, "archive"),
            state=bus.bucket("state"),
            letters=bus,
            requester=bus,
            leases=leases,
            serve=instance.serve,
        )
        service = ArchiveService(
            parts,
            store,
            settings.archive,
            place.instance,
            time.time_ns,
            namespaces=settings.cache.namespaces,
        )
        instance.watch(service.components, service.counters)
        try:
            await stack.enter_async_context(service)
        except StoreError as error:
            raise StateFolderError(str(error)) from error
        await service.wait_ready()
        await instance.ready()
        yield instance


@contextlib.asynccontextmanager
async def run_executor(bus: Bus, place: Place) -> AsyncIterator[Instance]:
    """The executor: what accepted advice asks for, by a program or Kubernetes."""
    from agent.executors.command import CommandTarget  # noqa: PLC0415
    from agent.executors.kubernetes import KubernetesTarget  # noqa: PLC0415
    from agent.executors.service import ExecutorService  # noqa: PLC0415

    settings = place.settings.executor
    target: CommandTarget | KubernetesTarget
    if settings.kind == "command":
        target = CommandTarget(settings.command, os.environ)
    elif settings.kind == "kubernetes":
        target = KubernetesTarget(settings.kubernetes)
    else:
        raise SettingsError(
            'setting executor.kind = "none": say how to act, "command" or "kubernetes"'
        )
    guarded = await is_authenticated(bus)
    async with (
        _instance(bus, "executor", place) as instance,
        _leases(bus, "executor", place) as leases,
        ExecutorService(
            bus,
            bus,
            leases,
            target,
            settings,
            name=place.instance,
            is_authenticated=guarded,
            clock=time.time_ns,
        ) as service,
    ):
        instance.watch(service.components, lambda: dict(service.counters))
        await instance.ready()
        yield instance


Build = Callable[[Bus, Place], contextlib.AbstractAsyncContextManager[Instance]]

RUN: Mapping[Role, Build] = {
    "archive": run_archive,
    "cache": run_cache,
    "executor": run_executor,
    "handlers": run_handlers,
    "agent": run_agent,
}
"""In the order of their start; they stop in the opposite one, so that who feeds stops first."""
