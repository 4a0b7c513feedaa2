"""The node agent on a real bus: cadences, fresh answers, sensors that fail or hang."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.assembly import Place, Simulation, run_agent
from agent.bus import Bus, connect
from agent.collectors.gpu import GpuBackend
from agent.collectors.host import HostCollector
from agent.collectors.nvml.backend import NvmlBackend
from agent.collectors.simulated_engines import SimulatedEngines
from agent.collectors.simulated_gpus import SimulatedGpus
from agent.gpus import GpuSampler
from agent.identity import Identity
from agent.service import NodeAgent
from agent.settings import AgentSettings, Settings
from schemas.api import LatestReply
from schemas.engines import EngineMetrics
from schemas.lifecycle import InstanceRecord
from schemas.metrics import GpuMetrics, HostMetrics
from schemas.protocols import RequestError
from tests.support.nvml import NvmlStub
from tests.support.waiting import until

ROOT = Path(__file__).resolve().parents[2]
FAST = AgentSettings(interval_seconds=0.1, process_interval_seconds=1.0, gpu_timeout_seconds=1.0)


def host_collector() -> HostCollector:
    return HostCollector(node="n1", node_name="n1", pool=None, process_limit=3)


class Seen:
    """Everything published below `metrics.>`, decoded by its subject."""

    def __init__(self) -> None:
        self.hosts: list[HostMetrics] = []
        self.gpus: list[GpuMetrics] = []
        self.engines: list[EngineMetrics] = []

    def take(self, subject: str, payload: bytes) -> None:
        kinds: dict[str, tuple[Any, list[Any]]] = {
            "host": (HostMetrics, self.hosts),
            "gpu": (GpuMetrics, self.gpus),
            "engine": (EngineMetrics, self.engines),
        }
        kind, found = kinds[subject.split(".")[1]]
        found.append(msgspec.json.decode(payload, type=kind))


@asynccontextmanager
async def agent_on(
    bus: Bus, *backends: GpuBackend, **parts: Any
) -> AsyncIterator[tuple[NodeAgent, Seen]]:
    seen = Seen()
    await bus.subscribe("metrics.>", seen.take)
    gpus = GpuSampler(backends, timeout_seconds=FAST.gpu_timeout_seconds, rescan_seconds=60.0)
    parts = {"host": host_collector(), "gpus": gpus, "settings": FAST, **parts}
    async with NodeAgent(bus, parts.pop("settings"), node="n1", **parts) as agent:
        service = await bus.serve("fleet-agent", agent.endpoints(), description="test")
        await agent.wait_ready()
        yield agent, seen
        await service.stop()


async def ask(bus: Bus, subject: str) -> LatestReply:
    answer = await bus.request(subject, timeout_seconds=3)
    return msgspec.json.decode(answer.payload, type=LatestReply)


async def test_what_a_role_publishes_and_its_record_have_the_labels(
    bus: Bus, tmp_path: Path
) -> None:
    labels = {"capacity": "spot", "topology.kubernetes.io/zone": "eu-1a"}
    place = Place(
        settings=Settings(state_dir=str(tmp_path), node="n1", agent=FAST, labels=labels),
        identity=Identity(machine="m", folder="f", boot="b", pid=1),
        instance="n1",
        simulation=Simulation(gpus="2xH100"),
    )
    seen = Seen()
    await bus.subscribe("metrics.>", seen.take)

    async with await connect(bus.url, name="agent") as own, run_agent(own, place):
        await until(lambda: len(seen.hosts) >= 1 and len(seen.gpus) >= 2)
        found = await bus.bucket("registry").get("agent.n1")

    assert [seen.hosts[0].labels, *(one.labels for one in seen.gpus[:2])] == [labels] * 3
    assert found is not None
    assert msgspec.json.decode(found[0], type=InstanceRecord).labels == labels


async def test_gpus_of_nvml_have_the_labels(bus: Bus, stub: NvmlStub) -> None:
    backend = NvmlBackend(node="n1", pool=None, labels={"capacity": "spot"})

    async with agent_on(bus, backend) as (_, seen):
        await until(lambda: len(seen.gpus) >= 1)

    assert seen.gpus[0].labels == {"capacity": "spot"}


async def test_real_host_metrics_come_every_interval_and_processes_more_seldom(bus: Bus) -> None:
    async with agent_on(bus) as (_, seen):
        await until(lambda: len(seen.hosts) >= 5)

    with_processes = [sample for sample in seen.hosts if sample.processes is not None]
    assert len(with_processes) == 1
    assert with_processes[0].processes
    assert seen.hosts[0].cpu is not None
    assert seen.hosts[0].cpu.utilization_ratio is None
    assert seen.hosts[-1].cpu is not None
    assert seen.hosts[-1].cpu.utilization_ratio is not None
    assert seen.hosts[-1].memory is not None
    assert not any(sample.simulated for sample in seen.hosts)


async def test_simulated_sources_are_labelled(bus: Bus) -> None:
    engines = SimulatedEngines(2, node="n1")
    gpus = SimulatedGpus(2, node="n1", engines=engines)

    async with agent_on(bus, gpus, engines=engines) as (_, seen):
        await until(lambda: len(seen.engines) >= 2 and len(seen.gpus) >= 2)

    assert all(sample.simulated for sample in seen.gpus)
    assert all(sample.simulated for sample in seen.engines)


async def test_an_agent_answers_with_a_sample_at_most_a_second_old(bus: Bus) -> None:
    slow = AgentSettings(interval_seconds=300)
    ahead_ns = 0

    async with agent_on(bus, settings=slow, clock=lambda: time.time_ns() + ahead_ns) as (_, seen):
        await until(lambda: len(seen.hosts) == 1)
        first = await ask(bus, "api.system.memory.n1")
        ahead_ns = 5_000_000_000
        second = await ask(bus, "api.system.memory.n1")

    assert len(seen.hosts) == 1
    assert first.rows[0].observed_at == seen.hosts[0].observed_at
    assert second.rows[0].observed_at > first.rows[0].observed_at
    assert second.rows[0].values["memory"]["total_bytes"] > 0


async def test_without_a_gpu_the_answer_says_why(bus: Bus, stub: NvmlStub) -> None:
    stub.set("count", "0")

    async with agent_on(bus, NvmlBackend(node="n1", pool=None)) as (agent, _):
        reply = await ask(bus, "api.gpu.temperature.n1")
        states = {part.name: part.state for part in agent.components()}

    assert reply.rows == []
    assert "no NVIDIA GPU" in reply.text
    assert states == {"host": "ok", "gpus": "off"}


async def test_an_agent_that_stops_says_goodbye_with_its_last_sample(bus: Bus) -> None:
    async with agent_on(bus) as (_, seen):
        await until(lambda: len(seen.hosts) >= 2)
    await until(lambda: seen.hosts[-1].leaving)

    assert not any(sample.leaving for sample in seen.hosts[:-1])
    assert seen.hosts[-1].memory is not None


async def test_a_host_that_cannot_be_read_is_told_and_the_agent_lives(bus: Bus) -> None:
    class Broken:
        def __init__(self) -> None:
            self.broken = True
            self._real = host_collector()

        def sample(self, *, with_processes: bool = False) -> HostMetrics:
            if self.broken:
                raise OSError("no /proc")
            return self._real.sample(with_processes=with_processes)

    host = Broken()
    async with agent_on(bus, host=host) as (agent, seen):
        with pytest.raises(RequestError) as refused:
            await ask(bus, "api.system.cpu.n1")
        failed = {part.name: (part.state, part.text) for part in agent.components()}
        host.broken = False
        await until(lambda: len(seen.hosts) >= 1)
        healed = {part.name: part.state for part in agent.components()}

    assert refused.value.code == 503
    assert failed["host"] == ("failed", "no /proc")
    assert healed["host"] == "ok"
    assert agent.counters["host_failures_total"] >= 1


async def test_a_gpu_that_hangs_is_told_and_costs_nothing_else(
    bus: Bus, two_gpus: NvmlStub
) -> None:
    async with agent_on(bus, NvmlBackend(node="n1", pool=None)) as (agent, seen):
        two_gpus.hang("0.power")
        await until(lambda: any(not gpu.is_reachable for gpu in seen.gpus))
        hosts, others = len(seen.hosts), sum(gpu.index == 1 for gpu in seen.gpus)
        await until(lambda: len(seen.hosts) >= hosts + 4)
        await until(lambda: sum(gpu.index == 1 for gpu in seen.gpus) >= others + 4)
        reply = await ask(bus, "api.gpu.power.n1")
        states = {part.name: (part.state, part.text) for part in agent.components()}
        two_gpus.set("0.power", "300000")
        await until(lambda: {p.name: p.state for p in agent.components()}["gpus"] == "ok")

    hung = next(gpu for gpu in seen.gpus if not gpu.is_reachable)
    why = "no answer in 1 s: the driver hangs"
    assert (hung.index, hung.errors) == (0, {"gpu": why})
    assert states["gpus"] == ("degraded", f"{hung.gpu}: {why}")
    assert [row.values["is_reachable"] for row in reply.rows] == [False, True]
    assert reply.rows[0].values["errors"] == {"gpu": why}
    assert agent.counters["gpu_timeouts_total"] >= 1


async def test_a_host_reading_that_hangs_costs_only_host_samples_until_it_ends(bus: Bus) -> None:
    release = threading.Event()

    class Hanging:
        def __init__(self) -> None:
            self.calls = 0
            self._real = host_collector()

        def sample(self, *, with_processes: bool = False) -> HostMetrics:
            self.calls += 1
            release.wait(60)
            return self._real.sample()

    host = Hanging()
    settings = msgspec.structs.replace(FAST, host_timeout_seconds=1.0)
    gpus = SimulatedGpus(1, node="n1")
    async with agent_on(bus, gpus, host=host, settings=settings) as (agent, seen):
        await until(lambda: len(seen.gpus) >= 1)
        # Rounds of 0.1 s that do not wait for the host; waiting, they would take 30 s.
        await until(lambda: len(seen.gpus) >= 31, seconds=20.0)
        calls, hosts = host.calls, len(seen.hosts)
        states = {part.name: (part.state, part.text) for part in agent.components()}
        with pytest.raises(RequestError, match="503") as refused:
            await ask(bus, "api.system.all.n1")
        release.set()
        await until(lambda: len(seen.hosts) >= 1)
        healed = {part.name: part.state for part in agent.components()}

    assert (calls, hosts) == (1, 0)
    # The one that hung, the question's, the goodbye, and what was published: none piled up.
    assert host.calls <= 3 + len(seen.hosts)
    assert states["host"] == ("failed", "no sample in 1 s")
    assert "does not answer in time" in str(refused.value)
    assert healed["host"] == "ok"
    assert agent.counters["host_timeouts_total"] >= 2


async def test_mig_instances_are_published_under_names_of_their_own(
    bus: Bus, stub: NvmlStub
) -> None:
    stub.add_mig(0, 0, gpu_instance=3)

    async with agent_on(bus, NvmlBackend(node="n1", pool=None)) as (_, seen):
        await until(lambda: len(seen.gpus) >= 4)

    parent, instance = seen.gpus[:2]
    assert instance.parent == parent.gpu
    assert instance.subject() == f"metrics.gpu.n1.{instance.gpu}"


async def test_sampling_never_blocks_the_event_loop(bus: Bus) -> None:
    freed_by_the_loop = threading.Event()
    outcomes: list[bool] = []

    class Blocking:
        def sample(self, *, with_processes: bool = False) -> HostMetrics:
            asyncio_loop.call_soon_threadsafe(freed_by_the_loop.set)
            outcomes.append(freed_by_the_loop.wait(5))
            return host_collector().sample()

    asyncio_loop = asyncio.get_running_loop()
    async with agent_on(bus, host=Blocking()):
        pass

    assert outcomes[0]


async def test_queries_share_one_gpu_sample_and_take_none_from_the_publisher(bus: Bus) -> None:
    class Counting(SimulatedGpus):
        samples = 0

        def sample(self) -> list[GpuMetrics]:
            self.samples += 1
            time.sleep(0.02)  # a driver call takes its time
            return super().sample()

    gpus = Counting(1, node="n1")
    async with agent_on(bus, gpus, clock=lambda: time.time_ns() + 3600 * 10**9) as (agent, _):
        before = gpus.samples
        replies = await asyncio.gather(*(ask(bus, "api.gpu.power.n1") for _ in range(8)))

    assert all(len(reply.rows) == 1 for reply in replies)
    assert gpus.samples - before <= 3
    assert agent.counters["gpu_timeouts_total"] == 0


async def test_queries_do_not_shorten_the_interval_of_what_is_published(bus: Bus) -> None:
    slow = AgentSettings(interval_seconds=1.0)
    ahead_ns = 10**12  # every answer is older than a second

    async with agent_on(
        bus,
        settings=slow,
        query_host=host_collector(),
        clock=lambda: time.time_ns() + ahead_ns,
    ) as (_, seen):
        await until(lambda: len(seen.hosts) == 1)
        for _ in range(5):
            await ask(bus, "api.system.cpu.n1")
        await until(lambda: len(seen.hosts) == 2)

    assert seen.hosts[1].interval_seconds > 0.9


def test_a_call_that_hangs_does_not_keep_the_process_alive() -> None:
    program = (
        "import asyncio, threading\n"
        "from agent.blocking import BlockingThread\n"
        "async def main():\n"
        "    thread = BlockingThread('hangs')\n"
        "    hung = asyncio.create_task(thread.run(threading.Event().wait))\n"
        "    await asyncio.sleep(0)\n"
        "    thread.close()\n"
        "    hung.cancel()\n"
        "asyncio.run(main())\n"
        "print('ended')\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=20, check=True
    )

    assert done.stdout == b"ended\n"
