"""The time range of a request: which one is meant, and what is wrong with it."""

from datetime import datetime

from schemas.protocols import RequestError
from schemas.units import SECOND_NS, to_ns

KEPT_DAYS = 90
"""No stream keeps anything for longer, so no range may be longer."""
_SKEW_NS = 5 * SECOND_NS


def time_range(
    start: datetime | None,
    end: datetime | None,
    seconds: float | None,
    now_ns: int,
    *,
    default_seconds: float,
) -> tuple[int, int]:
    """First and last instant in ns: `start`, or `seconds` before `end`; `end` None: now.

    Raises:
        RequestError: 400, and the field that is wrong.
    """
    if start is not None and seconds is not None:
        raise RequestError(400, "seconds: give either start or seconds, not both")
    end_ns = now_ns if end is None else to_ns(end)
    if end_ns > now_ns + _SKEW_NS:
        raise RequestError(400, "end: lies in the future")
    if end_ns <= 0:
        raise RequestError(400, "end: lies before 1970")
    if start is None:
        return max(0, end_ns - int((seconds or default_seconds) * SECOND_NS)), end_ns
    start_ns = to_ns(start)
    if start_ns > now_ns:
        raise RequestError(400, "start: lies in the future")
    if start_ns >= end_ns:
        raise RequestError(400, "start: must be before end")
    if end_ns - start_ns > KEPT_DAYS * 86_400 * SECOND_NS:
        raise RequestError(400, f"start: more than {KEPT_DAYS} days before end")
    return max(0, start_ns), end_ns
