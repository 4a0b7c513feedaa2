"""What commands print: bars, values, JSON, fields, keys."""

import contextlib
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.markup import escape

from agent import human
from agent.cli.start import errors
from agent.transfer import OnProgress

MAX_SHOWN_KEY = 80
LEAST_COLUMNS = 20
LEAST_USD = 1e-6
"""Less would be shown as 0 with six digits behind the point."""
LEAST_SECONDS = 0.001


@contextlib.contextmanager
def transferring(text: str) -> Iterator[OnProgress | None]:
    """On a terminal a bar of bytes, seen as soon as a first part has come."""
    if not errors.is_terminal:
        yield None
        return
    from rich.progress import (  # noqa: PLC0415 - the light commands must start fast
        BarColumn,
        Progress,
        TextColumn,
    )

    columns = (TextColumn(text), BarColumn(), TextColumn("{task.fields[sizes]}"))
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task(text, visible=False, sizes="")
        begun = time.monotonic()

        def show(done: int, whole: int) -> None:
            seconds = max(time.monotonic() - begun, LEAST_SECONDS)
            progress.update(
                task,
                completed=done,
                total=whole,
                visible=True,
                sizes=f"{human.size(done)} of {human.size(whole)}, {human.size(done / seconds)}/s",
            )

        yield show


@contextlib.contextmanager
def counted(total: int | None, text: str) -> Iterator[Callable[..., None]]:
    """On a terminal a bar; call what it gives with how many are done, and of how many."""
    if not errors.is_terminal:
        yield lambda _done, _total=None: None
        return
    from rich.progress import (  # noqa: PLC0415 - the light commands must start fast
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task(text, total=total)
        yield lambda done, of=total: progress.update(task, completed=done, total=of)


def write_value(
    key: str, namespace: str, value: bytes | None, output: Path | None, *, as_json: bool
) -> None:
    """Give a value out on stdout, or as a file; exit code 1 where there is none."""
    if value is None:
        if as_json:
            print_json({"key": key, "found": False})
        errors.print(f"no value for {quoted(key)} in namespace {escape(namespace)}")
        raise SystemExit(1)
    if output is not None:
        output.write_bytes(value)
        if as_json:
            print_json({"key": key, "found": True, "size_bytes": len(value), "file": str(output)})
        else:
            errors.print(f"wrote {human.size(len(value))} to {escape(str(output))}")
        return
    sys.stdout.buffer.write(value)
    if sys.stdout.isatty():
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()


def print_json(reply: Any) -> None:  # noqa: ANN401 - whatever msgspec encodes
    """One line of JSON on stdout."""
    print(msgspec.json.encode(reply).decode())


def print_lines(lines: Iterable[str]) -> None:
    """On a terminal folded between words, the rest below indented; elsewhere a line stays one.

    So does what comes `next`: a command that is to be copied.
    """
    for line in lines:
        text = line.lstrip()
        if text.startswith("next: "):
            print(line)
        else:
            _print_folded(line, len(line) - len(text) + 4)


def _print_folded(line: str, indent: int) -> None:
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    if not columns or len(line) <= columns:
        print(line)
        return
    print(
        textwrap.fill(
            line,
            max(columns, LEAST_COLUMNS),
            subsequent_indent=" " * min(indent, columns // 2),
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def print_fields(reply: msgspec.Struct | dict[str, Any], indent: str = "") -> None:
    """One line a field: bytes and seconds as people read them, what is not known as `-`.

    Structs in it are indented; a list of them is a table with the names of their fields on top.
    On a terminal a long line is folded.
    """
    fields = _fields(reply)
    width = max(map(len, fields))
    for name, value in fields.items():
        match value:
            case msgspec.Struct() | dict() if value:
                print(f"{indent}{name}")
                print_fields(value, f"{indent}  ")
            case [msgspec.Struct() | dict(), *_]:
                print(f"{indent}{name}")
                for line in _aligned(value):
                    print(f"{indent}  {line}")
            case _:
                line = f"{indent}{name:{width}}  {_shown(name, value)}"
                _print_folded(line, len(indent) + width + 2)


def _aligned(structs: Sequence[msgspec.Struct | dict[str, Any]]) -> Iterator[str]:
    """Their fields as columns, each under its name; texts on the left, numbers on the right."""
    rows = [_fields(one) for one in structs]
    columns = []
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        cells = [name, *(_short(_shown(name, value)) for value in values)]
        width = max(map(len, cells))
        is_number = all(value is None or isinstance(value, float | int) for value in values)
        columns.append([cell.rjust(width) if is_number else cell.ljust(width) for cell in cells])
    for line in zip(*columns, strict=True):
        yield "  ".join(line).rstrip()


def _short(cell: str) -> str:
    return cell if len(cell) <= MAX_SHOWN_KEY else f"{cell[:MAX_SHOWN_KEY]}…"


def _fields(reply: msgspec.Struct | dict[str, Any]) -> dict[str, Any]:
    return msgspec.structs.asdict(reply) if isinstance(reply, msgspec.Struct) else reply


def _shown(name: str, value: Any) -> str:  # noqa: ANN401 - any field's
    if value is None or value in ([], {}):
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if name.endswith("_bytes"):
        return human.size(value)
    if name.endswith("_seconds"):
        return human.duration(value)
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds")
    if isinstance(value, float):
        is_whole = name.endswith("_usd") and not 0 < abs(value) < LEAST_USD
        return f"{value:.6f}" if is_whole else f"{value:.6g}"
    return human.printable(str(value))


def quoted(key: str) -> str:
    """`key` for a message; a long one only by its beginning."""
    shown = key if len(key) <= MAX_SHOWN_KEY else f"{key[:MAX_SHOWN_KEY]}…"
    return escape(repr(shown))
