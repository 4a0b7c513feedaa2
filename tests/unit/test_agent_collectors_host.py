import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil
import pytest

from agent.collectors import host as host_module
from agent.collectors.cgroup import CgroupReader
from agent.collectors.filesystems import FilesystemProbe, FilesystemsSettings
from agent.collectors.host import HostCollector
from agent.collectors.mounts import Mount
from schemas.metrics import HostMetrics
from schemas.units import instant

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class Times(NamedTuple):
    user: float
    system: float
    idle: float


class Disk(NamedTuple):
    read_count: int = 0
    write_count: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    busy_time: int = 0


def collector(**arguments: Any) -> HostCollector:
    settings: dict[str, Any] = {
        "node": "n1",
        "node_name": "node one",
        "pool": "p1",
        "process_limit": 5,
        "filesystems": FilesystemProbe(FilesystemsSettings(timeout_seconds=30)),
    }
    return HostCollector(**(settings | arguments))


class Clock:
    """A monotonic clock that stands until told otherwise."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def broken(*_: object, **__: object) -> None:
    raise PermissionError("not for you")


def meminfo() -> dict[str, int]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}


def test_a_sample_of_this_machine_is_a_valid_message_without_errors() -> None:
    sample = collector().sample(with_processes=True)

    decoded = msgspec.json.decode(msgspec.json.encode(sample), type=HostMetrics)
    assert decoded == sample
    assert sample.errors == {}
    assert (sample.node, sample.node_name, sample.pool) == ("n1", "node one", "p1")
    assert sample.simulated is False


def test_the_first_sample_has_no_rates_and_no_utilization() -> None:
    sample = collector().sample()

    assert sample.interval_seconds == 0.0
    assert sample.cpu is not None
    assert (sample.cpu.utilization_ratio, sample.cpu.per_core_utilization_ratio) == (None, [])
    assert all(disk.read_bytes_per_second is None for disk in sample.disks or [])
    assert all(link.sent_bytes_per_second is None for link in sample.network or [])


def test_processes_come_only_when_asked_for() -> None:
    source = collector()

    plain, full = source.sample(), source.sample(with_processes=True)

    assert plain.processes is None
    assert full.processes is not None


@linux_only
def test_connections_are_as_many_as_the_kernel_lists() -> None:
    with socket.socket() as listening, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        udp.bind(("::1", 0))

        count = collector().sample().connections_count

        tables = [Path("/proc/net", name) for name in ("tcp", "tcp6", "udp", "udp6")]
        listed = sum(len(table.read_text().splitlines()) - 1 for table in tables)
    assert count is not None
    assert count >= 2
    assert count == pytest.approx(listed, abs=20)  # other programs connect meanwhile


@linux_only
def test_memory_is_what_the_kernel_says() -> None:
    memory = collector().sample().memory

    kernel = meminfo()
    assert memory is not None
    slack = 0.05 * kernel["MemTotal"]  # other processes run between the two readings
    assert memory.total_bytes == kernel["MemTotal"]
    assert memory.available_bytes == pytest.approx(kernel["MemAvailable"], abs=slack)
    assert memory.free_bytes == pytest.approx(kernel["MemFree"], abs=slack)
    assert memory.buffers_bytes == pytest.approx(kernel["Buffers"], abs=slack)
    assert memory.used_bytes == memory.total_bytes - memory.available_bytes
    assert memory.utilization_ratio == memory.used_bytes / memory.total_bytes
    assert memory.swap_total_bytes == kernel["SwapTotal"]


@linux_only
def test_cpu_counters_are_what_the_kernel_says() -> None:
    cpu = collector().sample().cpu

    text = Path("/proc/stat").read_text().splitlines()
    ticks = [int(word) / os.sysconf("SC_CLK_TCK") for word in text[0].split()[1:]]
    switches = next(int(line.split()[1]) for line in text if line.startswith("ctxt"))
    cores = sum(line.startswith("cpu") for line in text) - 1
    assert cpu is not None
    assert cpu.logical_cores == cores
    # The machine goes on between the readings: up to 30 s of all its cores.
    assert cpu.user_seconds_total == pytest.approx(ticks[0], abs=30 * cores)
    assert cpu.idle_seconds_total == pytest.approx(ticks[3], abs=30 * cores)
    assert cpu.context_switches_total is not None
    assert 0 < cpu.context_switches_total <= switches
    assert cpu.load_average_1m is not None


@linux_only
@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/Los_Angeles"])
def test_boot_and_uptime_do_not_depend_on_the_time_zone(
    monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        sample = collector().sample()
    finally:
        monkeypatch.undo()
        time.tzset()

    kernel_seconds = float(Path("/proc/uptime").read_text().split()[0])
    assert sample.uptime_seconds == pytest.approx(kernel_seconds, abs=30)
    assert sample.boot_at is not None
    assert sample.boot_at.timestamp() == pytest.approx(time.time() - kernel_seconds, abs=30)


@linux_only
def test_network_counters_are_what_the_kernel_says_without_the_loopback() -> None:
    network = collector().sample().network

    names = {path.name for path in Path("/sys/class/net").iterdir()}
    assert network is not None
    assert {link.interface for link in network} <= names - {"lo"}
    for link in network:
        counter = Path(f"/sys/class/net/{link.interface}/statistics/rx_bytes")
        assert 0 <= link.received_bytes_total <= int(counter.read_text())


@linux_only
def test_disks_are_whole_and_real(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = dict.fromkeys(["vda", "vda1", "loop0", "zram0", "cciss/c0d0"], Disk(read_bytes=7))
    monkeypatch.setattr(psutil, "disk_io_counters", lambda **_: listed)
    monkeypatch.setattr(os, "listdir", lambda _: ["vda", "loop0", "zram0", "cciss!c0d0"])

    disks = collector().sample().disks

    assert [disk.device for disk in disks or []] == ["cciss/c0d0", "vda"]


def test_the_root_file_system_is_there() -> None:
    source = collector()

    filesystems = source.sample().filesystems

    expected = os.statvfs("/")
    (root,) = [system for system in filesystems or [] if system.mountpoint == "/"]
    assert root.total_bytes == expected.f_blocks * expected.f_frsize


@linux_only
def test_a_mount_that_fails_costs_only_its_own_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [
        Mount("/dev/sda1", "/", "ext4", "8:1"),
        Mount("nas:/m", "/no/such/mount", "nfs4", "0:44"),
    ]
    monkeypatch.setattr(HostCollector, "_mounted", lambda _: mounts)

    sample = collector().sample()

    assert sample.filesystems is not None
    assert [system.total_bytes is None for system in sample.filesystems] == [False, True]
    assert list(sample.errors) == ["filesystems./no/such/mount"]


def test_rates_and_utilization_span_the_time_between_two_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    source = collector(monotonic=clock)
    monkeypatch.setattr(host_module, "_whole_disks", lambda names, _: list(names))
    _counters(monkeypatch, Times(10, 10, 10), {"sda": Disk(read_bytes=1000, busy_time=500)})
    source.sample()
    clock.seconds += 5.0
    _counters(monkeypatch, Times(12, 11, 17), {"sda": Disk(read_bytes=6000, busy_time=3000)})

    sample = source.sample()

    assert sample.interval_seconds == 5.0
    assert sample.cpu is not None
    assert sample.cpu.utilization_ratio == pytest.approx(0.3)
    assert sample.cpu.per_core_utilization_ratio == [pytest.approx(0.3)]
    assert sample.disks is not None
    assert (sample.disks[0].read_bytes_per_second, sample.disks[0].busy_ratio) == (1000.0, 0.5)


def test_after_a_counter_reset_one_sample_has_no_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    source = collector(monotonic=clock)
    monkeypatch.setattr(host_module, "_whole_disks", lambda names, _: list(names))
    samples = []
    for times, read_bytes in [
        (Times(10, 10, 10), 5000), (Times(1, 1, 1), 100), (Times(2, 1, 4), 600)
    ]:  # fmt: skip
        _counters(monkeypatch, times, {"sda": Disk(read_bytes=read_bytes)})
        samples.append(source.sample())
        clock.seconds += 5.0

    utilizations = [sample.cpu and sample.cpu.utilization_ratio for sample in samples]
    rates = [sample.disks and sample.disks[0].read_bytes_per_second for sample in samples]

    assert utilizations == [None, None, 0.25]
    assert rates == [None, None, 100.0]


def _counters(monkeypatch: pytest.MonkeyPatch, times: Times, disks: dict[str, Disk]) -> None:
    _cpu_times(monkeypatch, times)
    monkeypatch.setattr(psutil, "disk_io_counters", lambda **_: disks)


def _cpu_times(monkeypatch: pytest.MonkeyPatch, times: Times) -> None:
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu=False: [times] if percpu else times)


@pytest.mark.parametrize(
    ("call", "error", "missing"),
    [
        pytest.param("boot_time", "boot_at", ["boot_at", "uptime_seconds"], id="boot time"),
        pytest.param("virtual_memory", "memory", ["memory"], id="memory"),
        pytest.param(
            "swap_memory",
            "memory.swap_total_bytes",
            ["memory.swap_total_bytes", "memory.swap_utilization_ratio"],
            id="swap",
        ),
        pytest.param("HostCollector._mounted", "filesystems", ["filesystems"], id="file systems"),
        pytest.param("read_pressure", "pressure", ["pressure"], id="pressure"),
        pytest.param("CgroupReader.read", "cgroup", ["cgroup"], id="control group"),
        pytest.param("disk_io_counters", "disks", ["disks"], id="disks"),
        pytest.param("net_io_counters", "network", ["network"], id="network"),
        pytest.param("net_if_stats", "network.is_up", [], id="links"),
        pytest.param(
            "_socket_counts", "connections_count", ["connections_count"], id="connections"
        ),
        pytest.param("read_processes", "processes", ["processes"], id="processes"),
        pytest.param(
            "cpu_stats",
            "cpu.context_switches_total",
            ["cpu.context_switches_total", "cpu.interrupts_total"],
            id="CPU statistics",
        ),
        pytest.param(
            "cpu_freq",
            "cpu.frequency_hertz",
            ["cpu.frequency_hertz", "cpu.frequency_max_hertz"],
            id="CPU frequency",
        ),
    ],
)
def test_a_failing_reading_costs_only_its_own_field(
    monkeypatch: pytest.MonkeyPatch, call: str, error: str, missing: list[str]
) -> None:
    source = collector()
    owner = psutil if hasattr(psutil, call) else host_module
    monkeypatch.setattr(f"{owner.__name__}.{call}", broken)

    sample = source.sample(with_processes=True)

    assert sample.errors == {error: "PermissionError: not for you"}
    assert [_field(sample, name) for name in missing] == [None] * len(missing)
    others = {"boot_at", "memory", "filesystems", "disks", "network", "cpu", "processes"}
    assert all(getattr(sample, name) is not None for name in others - set(missing))


def _field(sample: HostMetrics, path: str) -> object:
    value: object = sample
    for name in path.split("."):
        value = getattr(value, name)
    return value


def test_failing_cpu_times_leave_the_rest_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_times", broken)

    sample = collector().sample()

    assert set(sample.errors) == {"cpu.utilization_ratio", "cpu.per_core_utilization_ratio"}
    assert sample.cpu is not None
    assert sample.cpu.user_seconds_total is None
    assert sample.cpu.load_average_1m is not None


@pytest.mark.parametrize("known", [None, (0.0, 0.0, 0.0)], ids=["nothing", "zeros"])
def test_an_unknown_frequency_is_null_and_no_error(
    monkeypatch: pytest.MonkeyPatch, known: tuple[float, ...] | None
) -> None:
    frequency = known and _Frequency(*known)
    monkeypatch.setattr(psutil, "cpu_freq", lambda: frequency)

    sample = collector().sample()

    assert sample.cpu is not None
    assert (sample.cpu.frequency_hertz, sample.cpu.frequency_max_hertz) == (None, None)
    assert sample.errors == {}


def test_the_frequency_is_read_every_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    source = collector(monotonic=clock)
    megahertz = iter([1000.0, 2000.0, 3000.0])
    monkeypatch.setattr(psutil, "cpu_freq", lambda: _Frequency(next(megahertz), 0, 0))
    hertz = []
    for seconds in (0.0, 29.0, 1.0):
        clock.seconds += seconds
        sample = source.sample()
        hertz.append(sample.cpu and sample.cpu.frequency_hertz)

    assert hertz == [1e9, 1e9, 2e9]


class _Frequency(NamedTuple):
    current: float
    min: float
    max: float


BURN = """
import time
while time.process_time() < 0.3: pass
print("burned", flush=True)
while True: pass
"""


@pytest.fixture
def burner() -> Iterator["subprocess.Popen[str]"]:
    """A process that keeps a core busy, and says when it has done so for a while."""
    process = subprocess.Popen([sys.executable, "-c", BURN], stdout=subprocess.PIPE, text=True)
    with process:
        yield process
        process.kill()


@linux_only
def test_the_busiest_processes_lead_the_table(burner: "subprocess.Popen[str]") -> None:
    source = collector(process_limit=20)
    source.sample(with_processes=True)
    assert burner.stdout is not None
    assert burner.stdout.readline() == "burned\n"

    table = source.sample(with_processes=True).processes or []

    (row,) = [row for row in table if row.pid == burner.pid]
    assert row.cpu_cores is not None
    assert 0.02 < row.cpu_cores < 1.5
    assert row.memory_rss_bytes is not None
    assert row.memory_rss_bytes > 1 << 20
    assert row.threads == 1
    use = [row.cpu_cores or 0.0 for row in table]
    assert use == sorted(use, reverse=True)


@linux_only
def test_the_table_is_no_longer_than_its_limit() -> None:
    sample = collector(process_limit=2).sample(with_processes=True)

    assert len(sample.processes or []) == 2


class _Used(NamedTuple):
    user: float
    system: float


class _Process(NamedTuple):
    pid: int
    info: dict[str, object]


def test_where_there_is_no_proc_the_process_table_is_psutils(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unknown = dict.fromkeys(["name", "create_time", "cpu_times", "memory_info", "num_threads"])
    used = {"name": "x", "create_time": 5.0, "cpu_times": _Used(2.0, 1.0), "num_threads": 3}
    rows = [_Process(7, unknown), _Process(8, unknown | used)]
    monkeypatch.setattr(host_module, "_IS_LINUX", False)
    monkeypatch.setattr(psutil, "process_iter", lambda _: rows)
    monkeypatch.setattr(psutil, "net_connections", lambda _: [1, 2])

    sample = collector().sample(with_processes=True)

    assert sample.connections_count == 2
    assert [(row.pid, row.name, row.threads) for row in sample.processes or []] == [
        (7, "unknown", None), (8, "x", 3)
    ]  # fmt: skip


class MacMemory(NamedTuple):
    total: int = 100
    available: int = 25
    free: int = 5


class MacDisk(NamedTuple):
    read_count: int = 1
    write_count: int = 2
    read_bytes: int = 3
    write_bytes: int = 4


def test_what_another_platform_does_not_tell_is_null_and_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host_module, "_IS_LINUX", False)
    monkeypatch.setattr(host_module, "read_pressure", lambda _: None)
    monkeypatch.setattr(CgroupReader, "read", lambda *_: None)
    monkeypatch.delattr(psutil, "cpu_freq", raising=False)
    monkeypatch.setattr(psutil, "virtual_memory", MacMemory)
    monkeypatch.setattr(psutil, "disk_io_counters", lambda **_: {"disk0": MacDisk()})
    _cpu_times(monkeypatch, Times(1, 1, 1))

    sample = collector().sample()

    assert sample.errors == {}
    assert (sample.pressure, sample.cgroup) == (None, None)
    assert sample.cpu is not None
    assert (sample.cpu.iowait_seconds_total, sample.cpu.frequency_hertz) == (None, None)
    assert sample.memory is not None
    assert (sample.memory.used_bytes, sample.memory.utilization_ratio) == (75, 0.75)
    assert (sample.memory.cached_bytes, sample.memory.buffers_bytes) == (None, None)
    assert sample.disks is not None
    assert (sample.disks[0].device, sample.disks[0].busy_seconds_total) == ("disk0", None)


def test_instants_come_from_the_given_clock() -> None:
    now_ns = 1_900_000_000_000_000_000

    sample = collector(clock=lambda: now_ns).sample()

    assert sample.observed_at == instant(now_ns)
    assert sample.boot_at is not None
    assert sample.uptime_seconds == pytest.approx(
        (sample.observed_at - sample.boot_at).total_seconds()
    )


@pytest.fixture
def host_root(tmp_path: Path) -> Iterator[Path]:
    """Another machine's root: this one's /proc with other figures, as `/host` in a container."""
    proc = tmp_path / "proc"
    for name in ("stat", "meminfo", "vmstat", "diskstats", "cpuinfo", "net/dev", "net/sockstat"):
        (proc / name).parent.mkdir(parents=True, exist_ok=True)
        (proc / name).write_bytes(Path("/proc", name).read_bytes())
    stat = (proc / "stat").read_text()
    (proc / "stat").write_text(re.sub(r"btime \d+", "btime 1700000000", stat))
    (proc / "loadavg").write_text("64.00 32.00 16.00 3/4711 99\n")
    (proc / "1").mkdir()
    (proc / "1" / "mountinfo").write_text("27 1 8:1 / / rw - xfs /dev/mapper/host rw\n")
    (proc / "1" / "stat").write_text(f"1 (the-host-init) S {'0 ' * 48}0\n")
    (tmp_path / "sys" / "block" / "nvme7n1").mkdir(parents=True)
    (proc / "diskstats").write_text("259 0 nvme7n1 1 0 8 1 1 0 16 1 0 1 2 0 0 0 0\n")
    yield tmp_path
    psutil.PROCFS_PATH = "/proc"


@linux_only
def test_in_a_container_the_hosts_own_files_are_read(host_root: Path) -> None:
    sample = collector(root=host_root, filesystems=FilesystemProbe(root=host_root)).sample(
        with_processes=True
    )

    assert sample.errors == {}
    assert sample.boot_at == instant(1_700_000_000 * 10**9)
    assert sample.cpu is not None
    assert sample.cpu.load_average_1m == 64.0
    assert [disk.device for disk in sample.disks or []] == ["nvme7n1"]
    assert [one.device for one in sample.filesystems or []] == ["/dev/mapper/host"]
    assert [row.name for row in sample.processes or []] == ["the-host-init"]
    assert sample.pressure is None
