"""Single keys from the terminal, while the event loop runs."""

import asyncio
import os
import sys
import termios
import tty
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

_ARROWS = {b"\x1b[A": "up", b"\x1b[B": "down"}
READ_BYTES = 64


class Keys:
    """Calls `press` with each key; a context manager that gives the terminal back as it was.

    Without a terminal on standard input it does nothing.
    """

    def __init__(self, press: Callable[[str], None]) -> None:
        self._press = press
        self._before: list[Any] | None = None
        self._fd = -1

    def __enter__(self) -> Self:
        if sys.stdin.isatty():
            self._fd = sys.stdin.fileno()
            self._before = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd)
            asyncio.get_running_loop().add_reader(self._fd, self._read)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def _read(self) -> None:
        data = os.read(self._fd, READ_BYTES)
        if not data:  # the terminal is gone
            self._press("q")
        elif data in _ARROWS:
            self._press(_ARROWS[data])
        else:
            for char in data.decode(errors="ignore"):
                self._press(char)
