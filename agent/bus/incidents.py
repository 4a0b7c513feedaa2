"""What goes wrong on one connection: counted, logged seldom, remembered for hints."""

import asyncio
import time
from collections import Counter, deque

import nats.errors
import structlog

from agent.human import reason

log = structlog.get_logger()

LOG_AGAIN_SECONDS = 60.0
MAX_LOGGED_KEYS = 100
PERMISSION_HINT_SECONDS = 10.0


COUNTERS = (
    "bad_messages_total",
    "callback_failures_total",
    "consumers_made_anew_total",
    "dead_letters_total",
    "disconnects_total",
    "dropped_while_disconnected_total",
    "duplicates_total",
    "forced_reconnects_total",
    "permission_denied_total",
    "reader_restarts_total",
    "reconnects_total",
    "refused_too_large_total",
    "slow_consumer_drops_total",
    "streams_made_anew_total",
)
"""What a connection counts."""


class Incidents:
    """Counters and memory of a connection's troubles. Nothing a stranger sends can flood the log.

    One line per kind and subject (or type of error) a minute, and at most 100 different ones.
    Nothing is logged while `connecting` for the first time: whoever connects is told by the error.
    """

    def __init__(self, bus_name: str) -> None:
        # From the start, so that who alerts on one can tell 0 from a name that is not there.
        self.counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self.last_error = ""
        self.login_refused = asyncio.Event()
        self.connecting = False
        self._bus_name = bus_name
        self._denied: deque[tuple[float, str]] = deque(maxlen=32)
        self._logged_at: dict[str, float] = {}

    def count_bad_message(self, subject: str, error: Exception) -> None:
        """Count a message that could not be handled."""
        self.counters["bad_messages_total"] += 1
        text = f"{type(error).__name__}: {error}"
        self.log_seldom("bad_message", subject=subject, error=text[:300])

    def take_error(self, error: Exception) -> None:
        """Sort what nats-py reports to its error callback."""
        text = reason(error)
        self.last_error = text
        lowered = text.lower()
        if "authorization" in lowered:
            self.login_refused.set()
        if self.connecting:
            return
        if "permissions violation" in lowered:
            self._denied.append((time.monotonic(), lowered))
            self.counters["permission_denied_total"] += 1
            _, *quoted = lowered.split('"')
            self.log_seldom("bus_denied", subject=quoted[0] if quoted else lowered, error=text)
            return
        if isinstance(error, nats.errors.SlowConsumerError):
            self.counters["slow_consumer_drops_total"] += 1
        self.log_seldom("bus_error", error_type=type(error).__name__, error=text)

    def permission_hint(self, subject: str, waited_seconds: float = 0.0) -> str:
        """` (the server denied …)` where it denied something about `subject` lately, else empty.

        A denied publish is told only to the error callback, in lower case; the requester waits,
        and says how long it did.
        """
        since = time.monotonic() - waited_seconds - PERMISSION_HINT_SECONDS
        wanted = f'"{subject.lower()}"'
        for at, text in reversed(self._denied):
            if at >= since and wanted in text:
                return f" (the server denied it to this user: {text})"
        return ""

    def log_seldom(self, event: str, *, error: str, **about: str) -> None:
        """Log `event` about these fields unless that was done less than a minute ago."""
        now = time.monotonic()
        key = " ".join((event, *about.values()))
        if now - self._logged_at.get(key, -LOG_AGAIN_SECONDS) < LOG_AGAIN_SECONDS:
            return
        if len(self._logged_at) >= MAX_LOGGED_KEYS:
            self._logged_at = {
                known: at for known, at in self._logged_at.items() if now - at < LOG_AGAIN_SECONDS
            }
            if len(self._logged_at) >= MAX_LOGGED_KEYS:
                return
        self._logged_at[key] = now
        log.warning(event, bus=self._bus_name, **about, error=error)
