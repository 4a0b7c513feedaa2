import errno
import os
from pathlib import Path

import pytest

from agent.collectors.pressure import parse_pressure, read_cgroup, read_pressure
from schemas.metrics import CgroupMetrics, PressureMetrics

# The form of Linux 6.8's files, with figures that divide evenly.
IO_PRESSURE = """\
some avg10=12.50 avg60=6.25 avg300=1.20 total=3521298
full avg10=25.00 avg60=50.00 avg300=0.07 total=1920430
"""
CPU_PRESSURE_BEFORE_5_13 = "some avg10=0.41 avg60=0.59 avg300=0.19 total=3521298\n"

# What `docker run --memory 2g --cpus 1.5` shows inside on cgroup v2 (memory.stat shortened).
V2_CONTAINER = {
    "memory.max": "2147483648\n",
    "memory.current": "1500000000\n",
    "memory.stat": "anon 900000000\nfile 600000000\ninactive_file 400000000\n",
    "cpu.max": "150000 100000\n",
    "cpu.stat": (
        "usage_usec 7300000\nuser_usec 5000000\nsystem_usec 2300000\n"
        "nr_periods 120\nnr_throttled 14\nthrottled_usec 2500000\n"
    ),
}
V2_UNLIMITED = {
    "memory.max": "max\n",
    "memory.current": "1000\n",
    "memory.stat": "inactive_file 1200\n",
    "cpu.max": "max 100000\n",
    "cpu.stat": "usage_usec 7300000\nnr_periods 0\nnr_throttled 0\nthrottled_usec 0\n",
}
# A hybrid machine: cgroup v1 controllers beside a v2 tree without any.
V1_MEMBERSHIP = """\
9:name=systemd:/
4:memory:/docker/3eb16ce0
2:cpu,cpuacct:/docker/3eb16ce0
0::/
"""
V1_MEMORY = {
    "memory.limit_in_bytes": "2147483648\n",
    "memory.usage_in_bytes": "1500000000\n",
    "memory.stat": "cache 600000000\ninactive_file 1\ntotal_inactive_file 400000000\n",
}
V1_CPU = {
    "cpu.cfs_quota_us": "50000\n",
    "cpu.cfs_period_us": "100000\n",
    "cpu.stat": "nr_periods 120\nnr_throttled 14\nthrottled_time 2500000000\n",
}


def folder(path: Path, files: dict[str, str]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name).write_text(text)
    return path


def test_pressure_percents_become_ratios_and_microseconds_seconds() -> None:
    pressure = parse_pressure("io", IO_PRESSURE)

    assert pressure == PressureMetrics(
        resource="io",
        some_10s_ratio=0.125,
        some_60s_ratio=0.0625,
        some_seconds_total=3.521298,
        full_10s_ratio=0.25,
        full_60s_ratio=0.5,
        full_seconds_total=1.92043,
    )


def test_cpu_pressure_of_an_older_kernel_has_no_full_part() -> None:
    pressure = parse_pressure("cpu", CPU_PRESSURE_BEFORE_5_13)

    assert pressure.some_seconds_total == 3.521298
    assert (pressure.full_10s_ratio, pressure.full_seconds_total) == (None, None)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n", id="full only"),
        pytest.param("some avg10=x avg60=0.00 avg300=0.00 total=0\n", id="not a number"),
    ],
)
def test_a_pressure_file_of_another_form_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="no pressure"):
        parse_pressure("memory", text)


def test_a_kernel_without_pressure_gives_none(tmp_path: Path) -> None:
    assert read_pressure(tmp_path / "pressure") is None


@pytest.mark.parametrize(
    ("code", "is_absent"),
    [
        pytest.param(errno.EOPNOTSUPP, True, id="started with psi=0"),
        pytest.param(errno.EACCES, False, id="forbidden"),
    ],
)
def test_pressure_that_is_switched_off_is_absent_and_other_failures_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, is_absent: bool
) -> None:
    def refuse(_: Path) -> str:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "read_text", refuse)

    if is_absent:
        assert read_pressure(tmp_path) is None
    else:
        with pytest.raises(PermissionError):
            read_pressure(tmp_path)


def test_every_pressure_file_that_exists_is_read(tmp_path: Path) -> None:
    files = {"cpu": CPU_PRESSURE_BEFORE_5_13, "io": IO_PRESSURE, "irq": "anything"}

    found = read_pressure(folder(tmp_path, files))

    assert found is not None
    assert [pressure.resource for pressure in found] == ["cpu", "io"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param(
            V2_CONTAINER,
            CgroupMetrics(
                version=2,
                memory_limit_bytes=2 << 30,
                memory_used_bytes=1_100_000_000,
                cpu_limit_cores=1.5,
                cpu_throttled_periods_total=14,
                cpu_throttled_seconds_total=2.5,
            ),
            id="limited",
        ),
        pytest.param(
            V2_UNLIMITED,
            CgroupMetrics(
                version=2,
                memory_used_bytes=0,
                cpu_throttled_periods_total=0,
                cpu_throttled_seconds_total=0.0,
            ),
            id="unlimited, more inactive than used",
        ),
        pytest.param({}, CgroupMetrics(version=2), id="root group without files"),
    ],
)
def test_cgroup_v2_limits_are_those_of_our_own_group(
    tmp_path: Path, files: dict[str, str], expected: CgroupMetrics
) -> None:
    folder(tmp_path / "root" / "system.slice" / "agent.service", files)
    membership = tmp_path / "cgroup"
    membership.write_text("0::/system.slice/agent.service\n")

    assert read_cgroup(membership, tmp_path / "root") == expected


def test_cgroup_v2_in_a_container_starts_at_the_mount(tmp_path: Path) -> None:
    folder(tmp_path / "root", V2_CONTAINER)
    membership = tmp_path / "cgroup"
    membership.write_text("0::/\n")

    cgroup = read_cgroup(membership, tmp_path / "root")

    assert cgroup is not None
    assert cgroup.memory_limit_bytes == 2 << 30


@pytest.mark.parametrize(
    "group",
    [
        pytest.param("docker/3eb16ce0", id="the host's view"),
        pytest.param("", id="a container: the group is its mount"),
    ],
)
def test_cgroup_v1_is_read_where_its_controllers_are(tmp_path: Path, group: str) -> None:
    folder(tmp_path / "root" / "memory" / group, V1_MEMORY)
    folder(tmp_path / "root" / "cpu" / group, V1_CPU)
    membership = tmp_path / "cgroup"
    membership.write_text(V1_MEMBERSHIP)

    assert read_cgroup(membership, tmp_path / "root") == CgroupMetrics(
        version=1,
        memory_limit_bytes=2 << 30,
        memory_used_bytes=1_100_000_000,
        cpu_limit_cores=0.5,
        cpu_throttled_periods_total=14,
        cpu_throttled_seconds_total=2.5,
    )


@pytest.mark.parametrize(
    ("memory", "cpu"),
    [
        pytest.param(
            {"memory.limit_in_bytes": "9223372036854771712\n"},
            {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"},
            id="the kernel's numbers for unlimited",
        ),
        pytest.param({}, {}, id="no files"),
    ],
)
def test_cgroup_v1_without_limits_is_null(
    tmp_path: Path, memory: dict[str, str], cpu: dict[str, str]
) -> None:
    folder(tmp_path / "root" / "memory", memory)
    folder(tmp_path / "root" / "cpu", cpu)
    membership = tmp_path / "cgroup"
    membership.write_text(V1_MEMBERSHIP)

    assert read_cgroup(membership, tmp_path / "root") == CgroupMetrics(version=1)


def test_a_system_without_cgroups_gives_none(tmp_path: Path) -> None:
    assert read_cgroup(tmp_path / "missing", tmp_path) is None
