"""What the node agent costs: CPU, memory, event-loop lag, one sample; node_exporter beside it.

`python -m benchmarks.bench_agent [--node-exporter FILE]`. Four parts:

- Agents as processes at the default interval and at 1 s, and a node_exporter for each interval,
  scraped as Prometheus does (gzip); all of them run at once over the same `--seconds`, taken as
  twelve windows of which each gives one ratio. CPU time is the kernel's clock of the process, with
  all its threads, ended ones too.
- The cost of one host sample, of the bare psutil calls that it needs, and of one scrape, in turns.
- The cost of one process table, per process.
- How late the agent's event loop is, at an interval of 1 s.
"""

import argparse
import asyncio
import contextlib
import http.client
import shutil
import socket
import statistics
import time
from collections.abc import AsyncIterator, Callable

import msgspec
import psutil

from agent.bus import Bus
from agent.collectors.host import HostCollector
from agent.gpus import GpuSampler
from agent.service import NodeAgent
from agent.settings import AgentSettings
from benchmarks.installation import private_bus, service
from benchmarks.rounds import ROUNDS, abba, ratios, spread

SLICE_SECONDS = 0.5
SETTLE_SECONDS = 10.0
LAG_RUNS = 5
LAG_SECONDS = 10.0
LAG_LOOK_SECONDS = 0.01
INTERVALS = (AgentSettings().interval_seconds, 1.0)
MEGABYTE = 1e6
MISSING = (
    "no prometheus-node-exporter, so nothing beside it: `apt-get download prometheus-node-exporter "
    "&& dpkg -x prometheus-node-exporter_*.deb DIR`, then `--node-exporter "
    "DIR/usr/bin/prometheus-node-exporter`"
)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process with all its threads, to the nanosecond: clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | 2)


def find_exporter() -> str | None:
    """The node_exporter on the path, if there is one."""
    return shutil.which("prometheus-node-exporter")


class NodeExporter:
    """A running node_exporter with Debian's defaults, scraped over one connection."""

    def __init__(self, pid: int, port: int) -> None:
        self.pid = pid
        self._connection = http.client.HTTPConnection("127.0.0.1", port)

    def scrape(self) -> int:
        """One scrape; returns the bytes received."""
        self._connection.request("GET", "/metrics", headers={"Accept-Encoding": "gzip"})
        return len(self._connection.getresponse().read())

    async def scrape_every(self, seconds: float) -> None:
        """Scrape for ever."""
        while True:
            await asyncio.to_thread(self.scrape)
            await asyncio.sleep(seconds)


@contextlib.asynccontextmanager
async def node_exporter(file: str) -> AsyncIterator[NodeExporter]:
    """A node_exporter on a free port, ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        file,
        f"--web.listen-address=127.0.0.1:{port}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(ConnectionRefusedError):
                    exporter = NodeExporter(process.pid, port)
                    exporter.scrape()
                    break
                await asyncio.sleep(0.05)
        yield exporter
    finally:
        process.terminate()
        await process.wait()


async def processes(bus: Bus, exporter_file: str | None, seconds: float) -> None:
    """Agents and exporters side by side."""
    pids: dict[str, int] = {}
    async with contextlib.AsyncExitStack() as stack:
        for number, interval in enumerate(INTERVALS):
            settings = {
                "RESOURCE_AGENT_AGENT__INTERVAL_SECONDS": str(interval),
                "RESOURCE_AGENT_NODE": f"bench-{number}",
            }
            pids[f"agent, every {interval:g} s"] = await stack.enter_async_context(
                service(bus, "agent", f"bench-{number}", **settings)
            )
            if exporter_file:
                exporter = await stack.enter_async_context(node_exporter(exporter_file))
                pids[f"node_exporter, every {interval:g} s"] = exporter.pid
                scraper = asyncio.create_task(exporter.scrape_every(interval))
                stack.callback(scraper.cancel)
        await asyncio.sleep(SETTLE_SECONDS)
        shares: dict[str, list[float]] = {name: [] for name in pids}
        for _ in range(ROUNDS):
            at, before = time.monotonic(), {name: cpu_seconds(pid) for name, pid in pids.items()}
            await asyncio.sleep(seconds / ROUNDS)
            elapsed = time.monotonic() - at
            for name, pid in pids.items():
                shares[name].append((cpu_seconds(pid) - before[name]) / elapsed)
        print(f"processes over {seconds:g} s, {len(psutil.pids())} processes on the machine")
        for name, pid in pids.items():
            percent = spread([100 * share for share in shares[name]])
            mean = 100 * statistics.fmean(shares[name])
            rss = psutil.Process(pid).memory_info().rss / MEGABYTE
            print(f"  {name}: {mean:.3f} % of a core (windows: {percent}), RSS {rss:.1f} MB")
    if exporter_file:
        for interval in INTERVALS:
            ours, theirs = f"agent, every {interval:g} s", f"node_exporter, every {interval:g} s"
            ratio = ratios(shares, ours, theirs)
            print(f"  CPU of the agent to node_exporter, every {interval:g} s: {ratio}")


def bare_psutil() -> None:
    """The psutil calls that say what a host sample says, but for pressure and control groups."""
    psutil.cpu_times()
    psutil.cpu_times(percpu=True)
    psutil.cpu_stats()
    psutil.cpu_count()
    psutil.getloadavg()
    psutil.boot_time()
    psutil.virtual_memory()
    psutil.swap_memory()
    for partition in psutil.disk_partitions():
        psutil.disk_usage(partition.mountpoint)
    psutil.disk_io_counters(perdisk=True, nowrap=False)
    psutil.net_io_counters(pernic=True, nowrap=False)
    psutil.net_if_stats()


async def cost_of(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """CPU microseconds of one call, over a slice."""
    count, end, before = 0, time.perf_counter() + SLICE_SECONDS, clock()
    while time.perf_counter() < end:
        call()
        count += 1
    return 1e6 * (clock() - before) / count


def collector() -> HostCollector:
    """A collector that has its first sample behind it."""
    made = HostCollector(node="bench", node_name="bench", pool=None, process_limit=10)
    made.sample(with_processes=True)
    return made


async def samples(exporter_file: str | None) -> None:
    """One sample, the bare calls, one scrape, in turns."""
    host = collector()
    async with contextlib.AsyncExitStack() as stack:
        slices = {
            "host sample": lambda: cost_of(host.sample, time.process_time),
            "bare psutil": lambda: cost_of(bare_psutil, time.process_time),
        }
        if exporter_file:
            exporter = await stack.enter_async_context(node_exporter(exporter_file))
            slices["scrape of node_exporter"] = lambda: cost_of(
                exporter.scrape, lambda: cpu_seconds(exporter.pid)
            )
        figures = await abba(slices)
    print(f"CPU time of one, in microseconds, {ROUNDS} rounds")
    for name, values in figures.items():
        print(f"  {name}: {spread(values)}")
    for name in list(figures)[1:]:
        print(f"  host sample to {name}: {ratios(figures, 'host sample', name)}")


async def process_table() -> None:
    """One reading of the process table."""
    host, count = collector(), len(psutil.pids())
    figures = await abba(
        {
            "with": lambda: cost_of(lambda: host.sample(with_processes=True), time.process_time),
            "without": lambda: cost_of(host.sample, time.process_time),
        }
    )
    table = spread([a - b for a, b in zip(figures["with"], figures["without"], strict=True)])
    print(
        f"process table of {count}: {table} microseconds, {table.median / count:.1f} a process; "
        f"read every {AgentSettings().process_interval_seconds:g} s"
    )


async def lag_of_one_run(bus: Bus) -> float:
    """The longest delay of the event loop of a working agent, in seconds."""
    worst = 0.0
    settings = AgentSettings(interval_seconds=1.0)
    host, query_host = collector(), collector()
    async with NodeAgent(
        bus,
        settings,
        node="lag",
        host=host,
        query_host=query_host,
        gpus=GpuSampler([], timeout_seconds=1.0, rescan_seconds=60.0),
    ) as agent:
        await agent.wait_ready()
        loop = asyncio.get_running_loop()
        end = loop.time() + LAG_SECONDS
        while loop.time() < end:
            due = loop.time() + LAG_LOOK_SECONDS
            await asyncio.sleep(LAG_LOOK_SECONDS)
            worst = max(worst, loop.time() - due)
    return worst


async def lag(bus: Bus) -> None:
    """Median over the runs of the longest delay."""
    worst = [1000 * await lag_of_one_run(bus) for _ in range(LAG_RUNS)]
    print(
        f"event loop, {LAG_RUNS} runs of {LAG_SECONDS:g} s at 1 s: longest delay "
        f"{statistics.median(worst):.1f} ms (runs: {min(worst):.1f} to {max(worst):.1f})"
    )


async def measure(exporter_file: str | None, seconds: float) -> None:
    """All parts."""
    if exporter_file is None:
        print(MISSING)
    await samples(exporter_file)
    await process_table()
    size = len(msgspec.json.encode(collector().sample()))
    print(f"a host sample is {size} bytes on the bus")
    async with private_bus() as bus:
        await lag(bus)
        await processes(bus, exporter_file, seconds)


def main() -> None:
    """Measure, with what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long processes run")
    parser.add_argument(
        "--node-exporter",
        default=find_exporter(),
        help="the program; default: the one on the path",
    )
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.node_exporter, arguments.seconds))


if __name__ == "__main__":
    main()
