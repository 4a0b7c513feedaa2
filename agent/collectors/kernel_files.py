"""Reading the small text files of /proc, /sys and cgroup file systems."""

import os

_CHUNK_BYTES = 1 << 16


def text(path: str | os.PathLike[str]) -> str | None:
    """The file's content without white space around it; None where there is no such file.

    Raises:
        OSError: the file is there but cannot be read.
    """
    # A file object would cost as much again as the kernel does: this runs once per process.
    try:
        file = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        content = b""
        while part := os.read(file, _CHUNK_BYTES):
            content += part
    finally:
        os.close(file)
    return content.decode(errors="surrogateescape").strip()


def number(path: str | os.PathLike[str]) -> int | None:
    """The one whole number in the file; None where there is no file, or it says `max`.

    Raises:
        OSError: the file is there but cannot be read.
        ValueError: it holds something else.
    """
    content = text(path)
    return None if content in (None, "max") else int(content)


def table(path: str | os.PathLike[str]) -> dict[str, int]:
    """A file of `name number` lines; empty where there is no such file.

    Raises:
        OSError: the file is there but cannot be read.
        ValueError: it holds something else.
    """
    pairs = (line.split() for line in (text(path) or "").splitlines())
    return {name: int(value) for name, value in pairs}
