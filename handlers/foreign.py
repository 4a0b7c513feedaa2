"""Messages in a stream that are not what their subject says: counted, and told once in a while."""

from collections import Counter

import structlog

from schemas.protocols import Clock, Delivery
from schemas.units import SECOND_NS

log = structlog.get_logger()

LOG_AGAIN_NS = 60 * SECOND_NS


class ForeignMessages:
    """Counts what queries pass over, in `foreign_messages_total`: each time that they meet it.

    The first is logged, and then at most one a minute.
    """

    def __init__(self, counters: Counter[str], clock: Clock) -> None:
        self._counters = counters
        self._clock = clock
        self._silent_until_ns = 0

    def pass_over(self, delivery: Delivery, error: Exception) -> None:
        """Count `delivery`, which could not be decoded because of `error`."""
        self._counters["foreign_messages_total"] += 1
        now_ns = self._clock()
        if now_ns < self._silent_until_ns:
            return
        self._silent_until_ns = now_ns + LOG_AGAIN_NS
        log.warning("message_passed_over", subject=delivery.subject, error=str(error)[:300])
