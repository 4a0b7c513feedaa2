"""A process in a real control group with real limits, where this machine lets us make one."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.collectors.cgroup import CgroupReader, find_groups
from agent.collectors.mounts import MountTable
from schemas.host import CgroupMetrics

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
# Joins the groups, burns CPU time well beyond its quota, and prints two readings.
PROGRAM = """
import json, os, sys, time, msgspec
from pathlib import Path
from agent.collectors.cgroup import CgroupReader
for folder in sys.argv[1:]:
    Path(folder, "cgroup.procs").write_text(str(os.getpid()))
reader, errors = CgroupReader(), {}
first = reader.read(errors)
end = time.monotonic() + 0.5
while time.monotonic() < end: pass
print(msgspec.json.encode([first, reader.read(errors)]).decode())
assert not errors, errors
"""


@pytest.fixture
def limited_groups() -> Iterator[list[Path]]:
    """Per controller a group with limits and within it one without; the inner ones."""
    process = Path("/proc/self")
    groups = find_groups(
        (process / "cgroup").read_text(), MountTable(process / "mountinfo").read()
    ).folders
    if "memory" not in groups or "cpu" not in groups or "pids" not in groups:
        pytest.skip("needs cgroup v1 controllers: a v2 group with processes may have no children")
    limits = {
        "memory": {"memory.limit_in_bytes": 256 * MIB},
        "cpu": {"cpu.cfs_period_us": 20_000, "cpu.cfs_quota_us": 4_000, "cpu.shares": 512},
        "pids": {"pids.max": 77},
    }
    made: list[Path] = []
    try:
        with contextlib.ExitStack() as stack:
            for controller, values in limits.items():
                outer = Path(groups[controller][0], f"resource-agent-test-{os.getpid()}")
                for folder in (outer, outer / "inner"):
                    folder.mkdir()
                    stack.callback(folder.rmdir)
                for name, value in values.items():
                    (outer / name).write_text(str(value))
                made.append(outer / "inner")
            yield made
    except PermissionError as error:
        pytest.skip(f"may not make control groups here: {error.strerror}")


def test_limits_of_a_parent_and_throttling_are_what_the_kernel_does(
    limited_groups: list[Path],
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, limited_groups)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    first, second = msgspec.json.decode(done.stdout, type=tuple[CgroupMetrics, CgroupMetrics])
    assert (second.version, second.memory_limit_bytes) == (1, 256 * MIB)
    assert second.cpu_limit_cores == pytest.approx(0.2)
    assert second.tasks_limit == 77
    assert (second.tasks_count or 0) >= 1
    assert second.memory_utilization_ratio is not None
    assert 0 < second.memory_utilization_ratio < 0.9
    assert first.cpu_throttled_periods_ratio is None
    # How much depends on what else runs on the machine.
    assert (second.cpu_throttled_periods_ratio or 0) > 0
    assert (second.cpu_throttled_seconds_per_second or 0) > 0


def test_our_own_group_can_be_read_without_errors() -> None:
    errors: dict[str, str] = {}

    metrics = CgroupReader().read(errors)

    assert metrics is not None
    assert errors == {}
    assert metrics.group is not None
