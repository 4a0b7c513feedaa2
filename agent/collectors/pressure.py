"""Pressure stall information: how long tasks waited for CPU, memory and I/O."""

import errno
import functools
import re
from pathlib import Path
from typing import Literal

import structlog

from agent.collectors.kernel_files import text
from schemas.host import PressureMetrics

log = structlog.get_logger()

_MICROSECONDS = 1_000_000
_RESOURCES: tuple[Literal["cpu", "memory", "io"], ...] = ("cpu", "memory", "io")
_LINE = re.compile(
    r"^(some|full) avg10=([\d.]+) avg60=([\d.]+) avg300=[\d.]+ total=(\d+)$", re.MULTILINE
)


def parse_pressure(resource: Literal["cpu", "memory", "io"], content: str) -> PressureMetrics:
    """One file of `/proc/pressure`: percent become ratios, microseconds become seconds.

    Kernels before 5.13 have no `full` line for the CPU: those fields are null.

    Raises:
        ValueError: there is no `some` line of the form the kernel documents.
    """
    lines = {
        kind: (float(avg10) / 100, float(avg60) / 100, int(total) / _MICROSECONDS)
        for kind, avg10, avg60, total in _LINE.findall(content)
    }
    if "some" not in lines:
        raise ValueError(f"no pressure in {content[:80]!r}")
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


def read_pressure(folder: Path | str, ending: str = "") -> list[PressureMetrics] | None:
    """The pressure files in `folder`; None where the kernel does not measure it, said once.

    Args:
        folder: `/proc/pressure`, or a cgroup v2 folder.
        ending: What follows the resource in the file names: `.pressure` in a cgroup.

    Raises:
        OSError: a file is there but cannot be read.
        ValueError: a file is not what the kernel documents.
    """
    found = []
    for resource in _RESOURCES:
        try:
            content = text(f"{folder}/{resource}{ending}")
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            _say_missing(str(folder), "the kernel was started with psi=0")
            return None
        if content is not None:
            found.append(parse_pressure(resource, content))
    if not found:
        _say_missing(str(folder), "this kernel has none, or it was started with psi=0")
    return found or None


@functools.cache
def _say_missing(folder: str, reason: str) -> None:
    log.info("no_pressure", folder=folder, reason=reason)
