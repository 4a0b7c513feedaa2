"""Control groups as trees of files whose contents are what the kernel documents."""

from pathlib import Path
from typing import Any

import pytest

from agent.collectors.cgroup import CgroupReader, find_groups
from agent.collectors.mounts import Mount
from schemas.host import CgroupMetrics

GIB = 1 << 30
V1_UNLIMITED = 9223372036854771712

# What `docker run --memory 2g --cpus 1.5 --pids-limit 100` shows inside (memory.stat shortened).
V2_FILES = {
    "memory.max": "2147483648",
    "memory.high": "max",
    "memory.current": "1500000000",
    "memory.peak": "1600000000",
    "memory.stat": "anon 900000000\nfile 600000000\ninactive_file 400000000",
    "memory.events": "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0",
    "memory.swap.max": "0",
    "memory.swap.current": "0",
    "cpu.max": "150000 100000",
    "cpu.weight": "100",
    "cpu.stat": (
        "usage_usec 7300000\nuser_usec 5000000\nsystem_usec 2300000\n"
        "nr_periods 120\nnr_throttled 14\nthrottled_usec 2500000\nnr_bursts 0\nburst_usec 0"
    ),
    "cpuset.cpus.effective": "0-3,8",
    "pids.current": "17",
    "pids.max": "100",
    "cpu.pressure": "some avg10=1.00 avg60=2.00 avg300=3.00 total=4000000",
}
V2_EXPECTED = CgroupMetrics(
    version=2,
    group="/",
    memory_limit_bytes=2 * GIB,
    memory_used_bytes=1_100_000_000,
    memory_current_bytes=1_500_000_000,
    memory_peak_bytes=1_600_000_000,
    memory_utilization_ratio=1_100_000_000 / (2 * GIB),
    memory_limit_hits_total=12,
    oom_kills_total=2,
    swap_limit_bytes=0,
    swap_used_bytes=0,
    cpu_limit_cores=1.5,
    cpu_weight=100,
    cpu_usage_seconds_total=7.3,
    cpu_periods_total=120,
    cpu_throttled_periods_total=14,
    cpu_throttled_seconds_total=2.5,
    cpuset_cpus="0-3,8",
    cpuset_cores=5,
    tasks_count=17,
    tasks_limit=100,
)
V1_FILES = {
    "memory": {
        "memory.limit_in_bytes": "2147483648",
        "memory.usage_in_bytes": "1500000000",
        "memory.max_usage_in_bytes": "1600000000",
        "memory.failcnt": "12",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2",
        "memory.stat": (
            "cache 600000000\ninactive_file 1\nhierarchical_memory_limit 2147483648\n"
            "hierarchical_memsw_limit 3221225472\ntotal_swap 4096\ntotal_inactive_file 400000000"
        ),
    },
    "cpu": {
        "cpu.shares": "512",
        "cpu.cfs_quota_us": "50000",
        "cpu.cfs_period_us": "100000",
        "cpu.stat": "nr_periods 120\nnr_throttled 14\nthrottled_time 2500000000",
    },
    "cpuacct": {"cpuacct.usage": "7300000000"},
    "cpuset": {"cpuset.cpus": "0-7", "cpuset.effective_cpus": "0-3,8"},
    "pids": {"pids.current": "17", "pids.max": "max"},
}
V1_EXPECTED = CgroupMetrics(
    version=1,
    group="/docker/3eb1",
    memory_limit_bytes=2 * GIB,
    memory_used_bytes=1_100_000_000,
    memory_current_bytes=1_500_000_000,
    memory_peak_bytes=1_600_000_000,
    memory_utilization_ratio=1_100_000_000 / (2 * GIB),
    memory_limit_hits_total=12,
    oom_kills_total=2,
    swap_limit_bytes=GIB,
    swap_used_bytes=4096,
    cpu_limit_cores=0.5,
    cpu_shares=512,
    cpu_usage_seconds_total=7.3,
    cpu_periods_total=120,
    cpu_throttled_periods_total=14,
    cpu_throttled_seconds_total=2.5,
    cpuset_cpus="0-3,8",
    cpuset_cores=5,
    tasks_count=17,
)


class Clock:
    """A monotonic clock that stands until told otherwise."""

    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


class Machine:
    """A process's /proc/self and the cgroup file systems it sees, in a temporary folder."""

    def __init__(self, folder: Path, membership: str) -> None:
        self.clock = Clock()
        self._folder = folder
        self._mounts = ["22 27 0:21 / /proc rw - proc proc rw"]
        (folder / "self").mkdir()
        (folder / "self" / "cgroup").write_text(membership)

    def mount(self, name: str, *, v1: str | None = None, inside: str = "/") -> None:
        """A cgroup file system at fs/`name`: v2, or v1 with these controllers."""
        kind = "cgroup2" if v1 is None else "cgroup"
        self._mounts.append(
            f"31 24 0:27 {inside} {self._folder}/fs/{name} ro,nosuid shared:9 - {kind} {kind} "
            f"rw{',' + v1 if v1 else ',nsdelegate'}"
        )
        (self._folder / "self" / "mountinfo").write_text("\n".join(self._mounts) + "\n")

    def mount_v1(self, group: str, *, inside: str = "/") -> None:
        """The v1 controllers, as most distributions mount them, with the files of a container."""
        for name in ("memory", "cpu,cpuacct", "cpuset", "pids"):
            self.mount(name, v1=name, inside=inside)
            for controller in name.split(","):
                self.write(f"{name}/{group}", V1_FILES[controller])

    def write(self, group: str, files: dict[str, str]) -> None:
        """Files of one group, each with the newline the kernel ends them with."""
        folder = self._folder / "fs" / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_text(content + "\n")

    def reader(self) -> CgroupReader:
        return CgroupReader(self._folder / "self", monotonic=self.clock)

    def read(self) -> CgroupMetrics:
        errors: dict[str, str] = {}
        metrics = self.reader().read(errors)
        assert metrics is not None
        assert errors == {}
        return metrics


V1_MEMBERSHIP = """\
9:name=systemd:/docker/3eb1
5:cpuset:/docker/3eb1
4:memory:/docker/3eb1
3:pids:/docker/3eb1
2:cpu,cpuacct:/docker/3eb1
"""


def without_pressure(metrics: CgroupMetrics) -> dict[str, Any]:
    return {name: getattr(metrics, name) for name in metrics.__struct_fields__[:-1]}


def test_a_v2_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/\n")
    machine.mount("cgroup")
    machine.write("cgroup", V2_FILES)

    metrics = machine.read()

    assert without_pressure(metrics) == without_pressure(V2_EXPECTED)
    assert [(one.resource, one.some_60s_ratio) for one in metrics.pressure or []] == [("cpu", 0.02)]


@pytest.mark.parametrize(
    ("folder", "inside"),
    [
        pytest.param("docker/3eb1", "/", id="the host's view"),
        pytest.param("", "/docker/3eb1", id="a container without a cgroup namespace"),
    ],
)
def test_v1_is_read_from_the_file_systems_of_its_controllers(
    tmp_path: Path, folder: str, inside: str
) -> None:
    machine = Machine(tmp_path, V1_MEMBERSHIP)
    machine.mount_v1(folder, inside=inside)

    assert machine.read() == V1_EXPECTED


def test_a_hybrid_machine_has_limits_from_v1_and_pressure_from_v2(tmp_path: Path) -> None:
    machine = Machine(tmp_path, V1_MEMBERSHIP + "0::/user.slice\n")
    machine.mount_v1("docker/3eb1")
    machine.mount("unified")
    machine.write("unified/user.slice", {"memory.pressure": V2_FILES["cpu.pressure"]})

    metrics = machine.read()

    assert without_pressure(metrics) == without_pressure(V1_EXPECTED)
    assert [one.resource for one in metrics.pressure or []] == ["memory"]


def test_a_hybrid_machine_may_have_some_controllers_in_v2(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "4:memory:/a\n0::/a\n")
    machine.mount("memory", v1="memory")
    machine.write("memory/a", V1_FILES["memory"])
    machine.mount("unified")
    machine.write("unified/a", V2_FILES)

    metrics = machine.read()

    assert (metrics.version, metrics.memory_limit_bytes) == (1, 2 * GIB)
    assert (metrics.swap_limit_bytes, metrics.cpu_limit_cores, metrics.tasks_limit) == (
        GIB, 1.5, 100
    )  # fmt: skip


@pytest.mark.parametrize(
    ("files", "field", "expected"),
    [
        pytest.param({"memory.max": ("max", "8000", "max")}, "memory_limit_bytes", 8000, id="up 1"),
        pytest.param({"memory.max": ("9", "8", "7")}, "memory_limit_bytes", 7, id="up 2"),
        pytest.param({"memory.max": ("7", "8", "max")}, "memory_limit_bytes", 7, id="its own"),
        pytest.param({"memory.max": ("max",) * 3}, "memory_limit_bytes", None, id="unlimited"),
        pytest.param({"memory.high": ("max", "6", "9")}, "memory_high_bytes", 6, id="high"),
        pytest.param({"memory.swap.max": ("9", "0", "max")}, "swap_limit_bytes", 0, id="swap"),
        pytest.param({"pids.max": ("max", "50", "60")}, "tasks_limit", 50, id="tasks"),
        pytest.param(
            {"cpu.max": ("max 100000", "400000 100000", "100000 50000")},
            "cpu_limit_cores",
            2.0,
            id="quota",
        ),
        pytest.param({"cpu.max": ("max 100000",) * 3}, "cpu_limit_cores", None, id="no quota"),
        pytest.param({"cpuset.cpus.effective": ("", "2-3", "0-3")}, "cpuset_cpus", "2-3", id="set"),
    ],
)
def test_the_tightest_limit_of_the_group_and_its_ancestors_applies(
    tmp_path: Path, files: dict[str, tuple[str, str, str]], field: str, expected: object
) -> None:
    machine = Machine(tmp_path, "0::/kubepods/pod1/engine\n")
    machine.mount("cgroup")
    for group, index in (("kubepods/pod1/engine", 0), ("kubepods/pod1", 1), ("kubepods", 2)):
        machine.write(f"cgroup/{group}", {name: levels[index] for name, levels in files.items()})

    assert getattr(machine.read(), field) == expected


def test_a_v1_memory_limit_above_what_is_visible_still_applies(tmp_path: Path) -> None:
    machine = Machine(tmp_path, V1_MEMBERSHIP)
    machine.mount_v1("", inside="/docker/3eb1")
    machine.write(
        "memory",
        {
            "memory.limit_in_bytes": str(V1_UNLIMITED),
            "memory.stat": f"hierarchical_memory_limit {GIB}\ntotal_inactive_file 0",
        },
    )

    metrics = machine.read()

    assert (metrics.memory_limit_bytes, metrics.memory_utilization_ratio) == (GIB, None)


def test_a_v1_quota_of_an_ancestor_applies_with_its_throttling(tmp_path: Path) -> None:
    machine = Machine(tmp_path, V1_MEMBERSHIP)
    machine.mount_v1("docker/3eb1")
    machine.write(
        "cpu,cpuacct/docker",
        {
            "cpu.cfs_quota_us": "20000",
            "cpu.cfs_period_us": "100000",
            "cpu.stat": "nr_periods 7\nnr_throttled 6\nthrottled_time 5000000000",
        },
    )

    metrics = machine.read()

    assert (metrics.cpu_limit_cores, metrics.cpu_periods_total) == (0.2, 7)
    assert metrics.cpu_throttled_seconds_total == 5.0


def test_v1_numbers_for_unlimited_are_null(tmp_path: Path) -> None:
    machine = Machine(tmp_path, V1_MEMBERSHIP)
    machine.mount_v1("docker/3eb1")
    machine.write(
        "memory/docker/3eb1",
        {
            "memory.limit_in_bytes": str(V1_UNLIMITED),
            "memory.stat": (
                f"hierarchical_memory_limit {V1_UNLIMITED}\n"
                f"hierarchical_memsw_limit {V1_UNLIMITED}\ntotal_inactive_file 0"
            ),
        },
    )
    machine.write("cpu,cpuacct/docker/3eb1", {"cpu.cfs_quota_us": "-1"})

    metrics = machine.read()

    assert (metrics.memory_limit_bytes, metrics.memory_utilization_ratio) == (None, None)
    assert (metrics.swap_limit_bytes, metrics.cpu_limit_cores) == (None, None)
    assert (metrics.cpu_periods_total, metrics.cpu_throttled_seconds_total) == (None, None)


def test_memory_is_as_full_as_the_fullest_limit_above_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/pod/engine\n")
    machine.mount("cgroup")
    for group, limit, current in (("pod/engine", "500", 100), ("pod", "1000", 950), ("", "", 0)):
        files = {"memory.current": str(current), "memory.stat": "inactive_file 50"}
        machine.write(f"cgroup/{group}", files | ({"memory.max": limit} if limit else {}))

    metrics = machine.read()

    assert metrics.memory_used_bytes == 50
    assert metrics.memory_utilization_ratio == 0.9


def test_a_group_with_more_inactive_than_used_memory_uses_none(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/\n")
    machine.mount("cgroup")
    machine.write("cgroup", {"memory.current": "1000", "memory.stat": "inactive_file 1200"})

    assert machine.read().memory_used_bytes == 0


def test_the_root_group_of_a_machine_has_no_limits_and_no_numbers(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/\n")
    machine.mount("cgroup")
    machine.write("cgroup", {"cpu.stat": "usage_usec 7300000"})

    assert machine.read() == CgroupMetrics(version=2, group="/", cpu_usage_seconds_total=7.3)


def cpu_stat(usage: int, periods: int, throttled: int, throttled_usec: int) -> dict[str, str]:
    return {
        "cpu.stat": f"usage_usec {usage}\nnr_periods {periods}\nnr_throttled {throttled}\n"
        f"throttled_usec {throttled_usec}"
    }


def test_rates_span_the_time_between_two_readings(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/\n")
    machine.mount("cgroup")
    machine.write("cgroup", V2_FILES | cpu_stat(1_000_000, 100, 10, 500_000))
    reader = machine.reader()
    first = reader.read({})
    machine.clock.seconds += 5.0
    machine.write("cgroup", cpu_stat(8_500_000, 150, 50, 10_500_000))

    second = reader.read({})

    assert first is not None
    assert (first.cpu_used_cores, first.cpu_throttled_periods_ratio) == (None, None)
    assert second is not None
    assert second.cpu_used_cores == 1.5
    assert second.cpu_throttled_periods_ratio == 0.8
    assert second.cpu_throttled_seconds_per_second == 2.0


def test_without_a_period_there_is_no_share_of_throttled_ones(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/\n")
    machine.mount("cgroup")
    machine.write("cgroup", V2_FILES)
    reader = machine.reader()
    reader.read({})
    machine.clock.seconds += 5.0

    metrics = reader.read({})

    assert metrics is not None
    assert (metrics.cpu_throttled_periods_ratio, metrics.cpu_used_cores) == (None, 0.0)


def test_another_group_that_limits_starts_its_rates_anew(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/pod/engine\n")
    machine.mount("cgroup")
    machine.write("cgroup/pod", {"cpu.max": "400000 100000"} | cpu_stat(0, 900, 800, 9_000_000))
    machine.write("cgroup/pod/engine", V2_FILES)
    reader = machine.reader()
    reader.read({})
    machine.clock.seconds += 5.0
    machine.write("cgroup/pod", {"cpu.max": "100000 100000"})

    metrics = reader.read({})

    assert metrics is not None
    assert (metrics.cpu_limit_cores, metrics.cpu_periods_total) == (1.0, 900)
    assert (metrics.cpu_throttled_periods_ratio, metrics.cpu_throttled_seconds_per_second) == (
        None, None
    )  # fmt: skip


def test_a_group_that_was_made_anew_starts_its_rates_anew(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/\n")
    machine.mount("cgroup")
    machine.write("cgroup", V2_FILES)
    reader = machine.reader()
    reader.read({})
    machine.clock.seconds += 5.0
    machine.write("cgroup", cpu_stat(1000, 1, 0, 0))

    metrics = reader.read({})

    assert metrics is not None
    assert (metrics.cpu_used_cores, metrics.cpu_throttled_periods_ratio) == (None, None)


def test_a_process_that_moves_to_another_group_is_followed(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/old\n")
    machine.mount("cgroup")
    machine.write("cgroup/old", V2_FILES)
    machine.write("cgroup/new", V2_FILES | {"memory.max": "4096"})
    reader = machine.reader()
    reader.read({})
    (tmp_path / "self" / "cgroup").write_text("0::/new\n")

    metrics = reader.read({})

    assert metrics is not None
    assert (metrics.group, metrics.memory_limit_bytes) == ("/new", 4096)


@pytest.mark.parametrize(
    ("file", "content", "part", "kept"),
    [
        pytest.param("memory.max", "much", "memory", "cpu_limit_cores", id="memory"),
        pytest.param("cpu.max", "a b", "cpu", "memory_limit_bytes", id="CPU"),
        pytest.param("cpuset.cpus.effective", "0-x", "cpuset", "tasks_limit", id="CPU set"),
        pytest.param("pids.current", "many", "tasks", "cpuset_cpus", id="tasks"),
        pytest.param("io.pressure", "none", "pressure", "tasks_limit", id="pressure"),
    ],
)
def test_a_file_of_another_form_costs_only_its_own_part(
    tmp_path: Path, file: str, content: str, part: str, kept: str
) -> None:
    machine = Machine(tmp_path, "0::/\n")
    machine.mount("cgroup")
    machine.write("cgroup", V2_FILES | {file: content})
    errors: dict[str, str] = {}

    metrics = machine.reader().read(errors)

    assert list(errors) == [f"cgroup.{part}"]
    assert getattr(metrics, kept) == getattr(V2_EXPECTED, kept)


@pytest.mark.parametrize(
    ("group", "inside"),
    [
        pytest.param("/", "/../..", id="the host's mount in a container's namespace"),
        pytest.param("/../other", "/", id="a process outside of our namespace"),
        pytest.param("/system.slice/x", "/docker/3eb1", id="another part of the tree"),
    ],
)
def test_a_group_that_the_mounts_do_not_show_is_an_error_and_not_another_groups_numbers(
    group: str, inside: str
) -> None:
    mount = Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", inside=inside)

    with pytest.raises(LookupError, match="no cgroup file system"):
        find_groups(f"0::{group}\n", [mount])


def test_a_controller_that_the_mounts_do_not_show_is_named_and_the_others_are_read(
    tmp_path: Path,
) -> None:
    machine = Machine(tmp_path, "9:name=systemd:/\n4:memory:/\n3:pids:/\n")
    machine.mount("memory", v1="memory", inside="/../..")
    machine.mount("systemd", v1="name=systemd", inside="/..")
    machine.mount("pids", v1="pids")
    machine.write("memory", V1_FILES["memory"])
    machine.write("pids", V1_FILES["pids"])
    errors: dict[str, str] = {}

    metrics = machine.reader().read(errors)

    assert metrics is not None
    assert (metrics.memory_limit_bytes, metrics.tasks_count) == (None, 17)
    assert errors == {"cgroup.memory": "what is mounted here does not show our group"}


def test_of_two_mounts_the_one_that_shows_more_ancestors_is_read() -> None:
    mounts = [
        Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", inside="/kubepods/pod1/engine"),
        Mount("cgroup2", "/host/sys/fs/cgroup", "cgroup2", inside="/"),
    ]

    groups = find_groups("0::/kubepods/pod1/engine\n", mounts)

    assert groups.folders[""][0] == "/host/sys/fs/cgroup/kubepods/pod1/engine"
    assert groups.folders[""][-1] == "/host/sys/fs/cgroup"


def test_a_system_without_control_groups_has_none(tmp_path: Path) -> None:
    assert CgroupReader(tmp_path / "missing").read({}) is None
