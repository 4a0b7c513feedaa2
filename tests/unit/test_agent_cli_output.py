"""Fields as commands print them."""

import contextlib
import io
from datetime import UTC, datetime

import msgspec
import pytest
from rich.console import Console

from agent.cli.output import print_fields, print_lines, transferring


class Entry(msgspec.Struct):
    key: str
    size_mb: float


class Reply(msgspec.Struct):
    name: str = "a\x1b[31m"
    used_bytes: int = 2048
    life_seconds: float = 90.0
    share: float = 0.25
    cost_usd: float = 0.000125
    least_usd: float = 2.5e-9
    enabled: bool = True
    seen_at: datetime | None = None
    entries: list[Entry] = []
    prices: dict[str, float] = {}


def test_each_field_is_a_line_as_people_read_it(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields(Reply(seen_at=datetime(2026, 11, 21, tzinfo=UTC)))

    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines == {
        "name": "a\\x1b[31m",
        "used_bytes": "2.0 KiB",
        "life_seconds": "90.0 s",
        "share": "0.25",
        "cost_usd": "0.000125",
        "least_usd": "2.5e-09",
        "enabled": "true",
        "seen_at": "2026-11-21 00:00:00+00:00",
        "entries": "-",
        "prices": "-",
    }


def test_what_is_in_a_field_is_indented_and_a_list_a_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    entries = [Entry("k1", 0.5), Entry("k" * 100, 1e-6)]
    print_fields(Reply(entries=entries, prices={"put": 0.005}))

    lines = capsys.readouterr().out.splitlines()
    assert lines[-6:] == [
        "entries",
        f"  {'key':81}  size_mb",
        f"  {'k1':81}      0.5",
        f"  {'k' * 80}…    1e-06",
        "prices",
        "  put  0.005",
    ]


def test_a_long_field_is_folded_under_its_beginning_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "40")

    with contextlib.redirect_stdout(Terminal()) as terminal:
        print_fields({"formula": "all that was put / all that was read, in MiB", "bytes": 1})

    assert terminal.getvalue().splitlines() == [
        "formula  all that was put / all that was",
        "         read, in MiB",
        "bytes    1",
    ]


def test_a_bar_counts_as_the_result_does(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100)
    monkeypatch.setattr("agent.cli.output.errors", console)

    with transferring("putting") as on_progress:
        assert on_progress is not None
        on_progress(25_000_000, 50_000_000)

    assert "23.8 MiB of 47.7 MiB, " in shown.getvalue()
    assert "iB/s" in shown.getvalue()


LINES = (
    "chat.scale_up.1763748000000000000  scale_up chat 2 → 3  [open]",
    "    why: too much load for 30 s; requests waiting 10.00 per replica",
    "    next: resource-agent approve chat.scale_up.1763748000000000000",
    "",
    "short",
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_are_folded_between_words_on_a_terminal_but_what_is_to_be_copied_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "40")

    with contextlib.redirect_stdout(Terminal()) as terminal:
        print_lines(LINES)

    assert terminal.getvalue().splitlines() == [
        "chat.scale_up.1763748000000000000",
        "    scale_up chat 2 → 3  [open]",
        "    why: too much load for 30 s;",
        "        requests waiting 10.00 per",
        "        replica",
        "    next: resource-agent approve chat.scale_up.1763748000000000000",
        "",
        "short",
    ]


def test_lines_that_no_terminal_shows_stay_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")

    print_lines(LINES)

    assert capsys.readouterr().out.splitlines() == list(LINES)
