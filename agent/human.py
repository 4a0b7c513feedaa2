"""Numbers and errors as people read them. Messages and JSON keep base units."""

import unicodedata

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def size(count_bytes: float) -> str:
    """`512 bytes`, `4.0 KiB`, `1.5 MiB`; units of 1024."""
    if abs(count_bytes) == 1:
        return "1 byte"
    unit = 0
    while abs(count_bytes) >= 1024 and unit < len(_UNITS) - 1:
        count_bytes /= 1024
        unit += 1
    return f"{count_bytes:.0f} bytes" if unit == 0 else f"{count_bytes:.1f} {_UNITS[unit]}"


def amount(value: float, digits: int = 4) -> str:
    """`0.8125`, `24000`, `1.5 M`, `46 G`, `113.7 T`: units of 1000 from a million on."""
    for step, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= step:
            return f"{value / step:.{digits}g} {unit}"
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def duration(seconds: float) -> str:
    """`0 s`, `0.8 ms`, `340 ms`, `4.2 s`, `3.5 min`, `2.1 h`, `5.0 d`."""
    if not seconds:
        return "0 s"
    if seconds < 1:
        milliseconds = seconds * 1000
        return f"{milliseconds:.1f} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"
    for limit, unit_seconds, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit_seconds:.1f} {unit}"
    return f"{seconds / 86_400:.1f} d"


def reason(error: BaseException) -> str:
    """What went wrong: of an OSError the system's words and the file, without its number."""
    inner = getattr(error, "reason", None)
    if isinstance(inner, OSError):  # urllib wraps it
        return reason(inner)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    wordless = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
    return str(error) or wordless


def printable(text: str) -> str:
    """`text` fit for a terminal: control and direction characters as their escapes.

    What passes by on the bus is written by strangers; a terminal would obey it.
    """
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
        else char
        for char in text
    )
