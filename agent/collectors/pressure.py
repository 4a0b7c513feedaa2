"""What the Linux kernel says in text files: pressure stall information and cgroup limits."""

import errno
import re
from pathlib import Path
from typing import Literal

from schemas.metrics import CgroupMetrics, PressureMetrics

_MICROSECONDS = 1_000_000
_NANOSECONDS = 1_000_000_000
# cgroup v1 has no word for "unlimited": it shows the largest page-aligned 63-bit number.
_UNLIMITED_BYTES = 1 << 62
_RESOURCES: tuple[Literal["cpu", "memory", "io"], ...] = ("cpu", "memory", "io")
_PRESSURE_LINE = re.compile(
    r"^(some|full) avg10=([\d.]+) avg60=([\d.]+) avg300=[\d.]+ total=(\d+)$", re.MULTILINE
)


def parse_pressure(resource: Literal["cpu", "memory", "io"], text: str) -> PressureMetrics:
    """One file of `/proc/pressure`: percent become ratios, microseconds become seconds.

    Kernels before 5.13 have no `full` line for the CPU: those fields are null.

    Raises:
        ValueError: there is no `some` line of the form the kernel documents.
    """
    lines = {
        kind: (float(avg10) / 100, float(avg60) / 100, int(total) / _MICROSECONDS)
        for kind, avg10, avg60, total in _PRESSURE_LINE.findall(text)
    }
    if "some" not in lines:
        raise ValueError(f"no pressure in {text[:80]!r}")
    full_10s, full_60s, full_total = lines.get("full", (None, None, None))
    return PressureMetrics(
        resource=resource,
        some_10s_ratio=lines["some"][0],
        some_60s_ratio=lines["some"][1],
        some_seconds_total=lines["some"][2],
        full_10s_ratio=full_10s,
        full_60s_ratio=full_60s,
        full_seconds_total=full_total,
    )


def read_pressure(folder: Path = Path("/proc/pressure")) -> list[PressureMetrics] | None:
    """Pressure of CPU, memory and I/O; None where the kernel does not measure it (or on macOS).

    Raises:
        OSError: a file is there but cannot be read.
        ValueError: a file is not what the kernel documents.
    """
    if not folder.is_dir():
        return None
    found = []
    for resource in _RESOURCES:
        try:
            text = (folder / resource).read_text()
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:  # the kernel was started with psi=0
                return None
            raise
        found.append(parse_pressure(resource, text))
    return found


def read_cgroup(
    membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> CgroupMetrics | None:
    """Limits and use of this process's own control group; None where there are none (macOS).

    Used memory is the working set as the kubelet counts it (cAdvisor): use minus inactive file
    pages, so that page cache does not look like pressure. Limits of parent groups are not
    followed: in a container they cannot be seen.

    Raises:
        OSError: a file is there but cannot be read.
        ValueError: a file is not what the kernel documents.
    """
    try:
        lines = membership.read_text().splitlines()
    except FileNotFoundError:
        return None
    groups: dict[str, str] = {}
    for line in lines:
        _, controllers, group = line.split(":", 2)
        groups.update(dict.fromkeys(controllers.split(","), group))
    if "memory" in groups or "cpu" in groups:
        return _version_1(
            _group_folder(root / "memory", groups.get("memory", "/")),
            _group_folder(root / "cpu", groups.get("cpu", "/")),
        )
    return _version_2(_group_folder(root, groups[""])) if "" in groups else None


def _group_folder(mount: Path, group: str) -> Path:
    """The group's folder; in a container whose mount starts at its own group, the mount."""
    folder = mount / group.lstrip("/")
    return folder if folder.is_dir() else mount


def _version_2(group: Path) -> CgroupMetrics:
    limit = _text(group / "memory.max")
    quota, _, period = (_text(group / "cpu.max") or "max").partition(" ")
    statistics = _table(group / "cpu.stat")
    throttled = statistics.get("throttled_usec")
    return CgroupMetrics(
        version=2,
        memory_limit_bytes=None if limit in (None, "max") else int(limit),
        memory_used_bytes=_working_set(group, "memory.current", "inactive_file"),
        cpu_limit_cores=None if quota == "max" else int(quota) / int(period),
        cpu_throttled_periods_total=statistics.get("nr_throttled"),
        cpu_throttled_seconds_total=None if throttled is None else throttled / _MICROSECONDS,
    )


def _version_1(memory: Path, cpu: Path) -> CgroupMetrics:
    limit = int(_text(memory / "memory.limit_in_bytes") or _UNLIMITED_BYTES)
    quota = int(_text(cpu / "cpu.cfs_quota_us") or -1)  # -1 is the kernel's "unlimited"
    period = int(_text(cpu / "cpu.cfs_period_us") or 0)
    statistics = _table(cpu / "cpu.stat")
    throttled = statistics.get("throttled_time")
    return CgroupMetrics(
        version=1,
        memory_limit_bytes=limit if limit < _UNLIMITED_BYTES else None,
        memory_used_bytes=_working_set(memory, "memory.usage_in_bytes", "total_inactive_file"),
        cpu_limit_cores=quota / period if quota > 0 and period > 0 else None,
        cpu_throttled_periods_total=statistics.get("nr_throttled"),
        cpu_throttled_seconds_total=None if throttled is None else throttled / _NANOSECONDS,
    )


def _working_set(group: Path, usage_file: str, inactive_name: str) -> int | None:
    usage = _text(group / usage_file)
    inactive = _table(group / "memory.stat").get(inactive_name)
    if usage is None or inactive is None:
        return None
    # The two files are read one after the other, so the difference can dip below zero.
    return max(0, int(usage) - inactive)


def _text(path: Path) -> str | None:
    """The file's content without the newline; None where it does not exist (root groups)."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return None


def _table(path: Path) -> dict[str, int]:
    """A file of `name number` lines; empty where it does not exist."""
    pairs = (line.split() for line in (_text(path) or "").splitlines())
    return {name: int(number) for name, number in pairs}
