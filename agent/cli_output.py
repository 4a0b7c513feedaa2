"""What commands print: bars, values, JSON, fields, keys."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from rich.markup import escape

from agent import human
from agent.cli_start import errors
from agent.transfer import OnProgress

MAX_SHOWN_KEY = 80


@contextlib.contextmanager
def transferring(text: str) -> Iterator[OnProgress | None]:
    """On a terminal a bar of bytes, seen as soon as a first part has come."""
    if not errors.is_terminal:
        yield None
        return
    from rich.progress import (  # noqa: PLC0415 - the light commands must start fast
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn(text), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task(text, visible=False)
        yield lambda done, whole: progress.update(task, completed=done, total=whole, visible=True)


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


def print_fields(reply: msgspec.Struct | dict[str, Any], indent: str = "") -> None:
    """One line a field: bytes and seconds as people read them, what is not known as `-`."""
    fields = msgspec.structs.asdict(reply) if isinstance(reply, msgspec.Struct) else reply
    width = max(map(len, fields))
    for name, value in fields.items():
        if isinstance(value, msgspec.Struct | dict) and value:
            print(f"{indent}{name}")
            print_fields(value, f"{indent}  ")
            continue
        if value is None or value in ([], {}):
            text = "-"
        elif name.endswith("_bytes"):
            text = human.size(value)
        elif name.endswith("_seconds"):
            text = human.duration(value)
        elif isinstance(value, float):
            text = f"{value:.3f}" if not name.endswith("_usd") else f"{value:.6f}"
        else:
            text = human.printable(str(value))
        print(f"{indent}{name:{width}}  {text}")


def quoted(key: str) -> str:
    """`key` for a message; a long one only by its beginning."""
    shown = key if len(key) <= MAX_SHOWN_KEY else f"{key[:MAX_SHOWN_KEY]}…"
    return escape(repr(shown))
