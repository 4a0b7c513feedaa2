import os
import sys
from pathlib import Path

import msgspec
import pytest

from agent.collectors import kernel_files
from agent.collectors import processes as processes_module
from agent.collectors.processes import ProcessRanking, ProcessUse, read_processes

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")


def process(
    proc: Path,
    pid: int,
    *,
    name: bytes = b"python",
    user_ticks: int = 0,
    started: int = 5,
    command: bytes = b"",
) -> None:
    """A process as proc(5) has it: 2 threads, 10 pages resident."""
    folder = proc / str(pid)
    folder.mkdir(parents=True, exist_ok=True)
    before, after = b"S 1 1 1 0 -1 4194560 9 0 0 0", b"0 0 20 0 2 0"
    (folder / "stat").write_bytes(
        b"%d (%s) %s %d 0 %s %d 4096 10 18446744073709551615 1 1\n"
        % (pid, name, before, user_ticks, after, started)
    )
    (folder / "cmdline").write_bytes(command)


def test_a_process_is_what_its_stat_file_says(tmp_path: Path) -> None:
    process(tmp_path, 7, name=b"a) R (b c", user_ticks=3 * TICKS, started=77)
    (tmp_path / "self").mkdir()

    (use,) = read_processes(tmp_path)

    assert use == ProcessUse(7, "a) R (b c", 77, 3.0, 10 * PAGE, 2)


def test_this_process_is_in_the_table() -> None:
    if sys.platform != "linux":
        pytest.skip("reads /proc")

    (use,) = [use for use in read_processes(Path("/proc")) if use.pid == os.getpid()]

    used = os.times()
    assert use.cpu_seconds == pytest.approx(used.user + used.system, abs=0.5)
    assert use.name == Path("/proc/self/comm").read_text().strip()
    assert (use.threads or 0) >= 1
    assert (use.memory_rss_bytes or 0) > 1 << 20


@pytest.mark.parametrize("error", [ProcessLookupError, PermissionError, FileNotFoundError])
def test_a_process_that_vanishes_or_is_hidden_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    process(tmp_path, 7)
    process(tmp_path, 8)

    def text(path: str) -> str | None:
        if path.endswith("/7/stat"):
            if error is FileNotFoundError:
                return None
            raise error
        return kernel_files.text(path)

    monkeypatch.setattr(processes_module, "text", text)

    assert [use.pid for use in read_processes(tmp_path)] == [8]


def test_the_busiest_come_first_then_the_largest_and_no_more_than_the_limit(
    tmp_path: Path,
) -> None:
    def uses(busy_seconds: float) -> list[ProcessUse]:
        return [
            ProcessUse(1, "small", 5, 1.0, 100, 1),
            ProcessUse(2, "busy", 5, busy_seconds, 50, 1),
            ProcessUse(3, "large", 5, 1.0, 900, 1),
            ProcessUse(4, "hidden", 5, None, None, None),
        ]

    ranking = ProcessRanking(3, tmp_path)
    first = ranking.top(uses(10.0), now=100.0)

    second = ranking.top(uses(15.0), now=110.0)

    assert [(row.name, row.cpu_cores) for row in first] == [
        ("large", None), ("small", None), ("busy", None)
    ]  # fmt: skip
    assert [(row.name, row.cpu_cores) for row in second] == [
        ("busy", 0.5), ("large", 0.0), ("small", 0.0)
    ]  # fmt: skip


def test_a_pid_that_is_used_again_is_another_process(tmp_path: Path) -> None:
    ranking = ProcessRanking(5, tmp_path)
    ranking.top([ProcessUse(7, "old", 5, 50.0, 1, 1)], now=100.0)

    (row,) = ranking.top([ProcessUse(7, "new", 6, 60.0, 1, 1)], now=110.0)

    assert row.cpu_cores is None


@pytest.mark.parametrize(
    ("name", "command", "expected"),
    [
        pytest.param(b"VLLM::EngineCor", b"VLLM::EngineCore\0", "VLLM::EngineCore", id="title"),
        pytest.param(
            b"resource-agent-", b"/usr/bin/resource-agent-x\0run\0", "resource-agent-x", id="path"
        ),
        pytest.param(b"kworker/u8:2-ev", b"", "kworker/u8:2-ev", id="a kernel thread"),
        pytest.param(b"renamed-by-itsf", b"/bin/other\0", "renamed-by-itsf", id="another name"),
        pytest.param(b"short", b"shorter-than-that\0", "short", id="not cut"),
    ],
)
def test_a_name_that_the_kernel_has_cut_is_completed(
    tmp_path: Path, name: bytes, command: bytes, expected: str
) -> None:
    process(tmp_path, 7, name=name, command=command)

    (row,) = ProcessRanking(5, tmp_path).top(read_processes(tmp_path), now=1.0)

    assert row.name == expected


def test_a_name_that_is_no_text_can_still_be_sent(tmp_path: Path) -> None:
    process(tmp_path, 7, name=b"\xff\xfe")

    (row,) = ProcessRanking(5, tmp_path).top(read_processes(tmp_path), now=1.0)

    assert msgspec.json.decode(msgspec.json.encode(row.name)) == "\ufffd\ufffd"
