"""Files that a command writes at its end, tried at its start."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def writable(*paths: Path | None) -> Iterator[None]:
    """What cannot be written is told now, not after the work.

    A file that was not there, and to which nothing was written in the end, is not left behind.

    Raises:
        OSError: one of them cannot be written.
    """
    made = [path for path in paths if path is not None and not path.exists()]
    try:
        for path in paths:
            if path is not None:
                path.open("a").close()
        yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                if not path.stat().st_size:
                    path.unlink()
