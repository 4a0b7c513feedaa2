"""The process table: what each process used, and the top of it."""

import heapq
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from agent.collectors.counters import per_second
from agent.collectors.kernel_files import text
from schemas.host import ProcessMetrics

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_NAME_LENGTH = 15  # longer ones are cut by the kernel: TASK_COMM_LEN
_STAT = re.compile(r"(\d+) \((.*)\) (.*)", re.DOTALL)  # the name may hold anything, `) (` too


class ProcessUse(NamedTuple):
    """One process since it started; `started` tells it from another with the same pid."""

    pid: int
    name: str
    started: float
    cpu_seconds: float | None
    memory_rss_bytes: int | None
    threads: int | None


def read_processes(proc: Path) -> Iterator[ProcessUse]:
    """Every process in `proc`, from its `stat` file alone (proc(5)).

    One small file per process that never waits for that process's memory lock, unlike `cmdline`.
    Processes that vanish while we look, and those we may not see, are left out.
    """
    for entry in os.listdir(proc):
        if not entry.isdecimal():
            continue
        try:
            content = text(f"{proc}/{entry}/stat")
        except (PermissionError, ProcessLookupError):
            continue
        if content is None or (match := _STAT.fullmatch(content)) is None:
            continue
        fields = match[3].split(" ")  # from field 3 of proc(5) on
        yield ProcessUse(
            pid=int(entry),
            name=match[2],
            started=int(fields[19]),
            cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND,
            memory_rss_bytes=int(fields[21]) * _PAGE_BYTES,
            threads=int(fields[17]),
        )


class ProcessRanking:
    """The processes that use most, by the difference to the previous table."""

    def __init__(self, limit: int, proc: Path) -> None:
        self._limit = limit
        self._proc = proc
        self._read_at = 0.0
        self._cpu_seconds: dict[tuple[int, float], float] = {}

    def top(self, uses: Iterable[ProcessUse], now: float) -> list[ProcessMetrics]:
        """Most CPU first, then most resident memory; O(n log limit).

        `cpu_cores` is null for a process that was not in the previous table.
        """
        before, elapsed = self._cpu_seconds, now - self._read_at
        self._cpu_seconds, self._read_at = {}, now
        rows: list[tuple[float | None, ProcessUse]] = []
        for use in uses:
            cores = None
            if use.cpu_seconds is not None:
                key = (use.pid, use.started)  # a pid alone may be used again
                self._cpu_seconds[key] = use.cpu_seconds
                cores = per_second(use.cpu_seconds, before.get(key), elapsed)
            rows.append((cores, use))
        busiest = heapq.nlargest(
            self._limit, rows, key=lambda row: (row[0] or 0.0, row[1].memory_rss_bytes or 0)
        )
        return [
            ProcessMetrics(
                pid=use.pid,
                name=self._full_name(use).encode(errors="surrogateescape").decode(errors="replace"),
                cpu_cores=cores,
                memory_rss_bytes=use.memory_rss_bytes,
                threads=use.threads,
            )
            for cores, use in busiest
        ]

    def _full_name(self, use: ProcessUse) -> str:
        """The name as the command line has it, where the kernel has cut it."""
        if len(os.fsencode(use.name)) < _NAME_LENGTH:
            return use.name
        try:
            command = text(self._proc / str(use.pid) / "cmdline") or ""
        except OSError:
            return use.name
        name = os.path.basename(command.split("\0", 1)[0])
        return name if name.startswith(use.name) else use.name
