"""What becomes of the entries that leave RAM: they go to the archive, or end here."""

from collections import Counter
from collections.abc import Iterator

import structlog

from cache.archived import ArchivedKeys
from cache.entry import Entry
from cache.outbox import Item, Outbox
from cache.reuse import ReuseLearner
from cache.settings import CacheSettings
from cache.ttl import WRITER, Decision, decide
from schemas.protocols import Clock
from schemas.units import SECOND_NS

log = structlog.get_logger()

MAX_LOGGED_KEY = 80


class Evictions:
    """Decides by the TTL heuristic, and puts what is to be archived into the outbox.

    `decisions` counts them by heuristic and outcome.
    """

    def __init__(
        self,
        name: str,
        settings: CacheSettings,
        learner: ReuseLearner,
        archived: ArchivedKeys,
        outbox: Outbox,
        message_ids: Iterator[str],
        clock: Clock,
    ) -> None:
        """`name` is the namespace's, for the log."""
        self.decisions: Counter[str] = Counter()
        self._name = name
        self._settings = settings
        self._learner = learner
        self._archived = archived
        self._outbox = outbox
        self._message_ids = message_ids
        self._clock = clock

    def decide(self, entry: Entry, now_ns: int) -> Decision:
        """What the archive would be told of `entry` if it were evicted now."""
        return decide(self._settings.ttl, entry, self._learner, now_ns)

    def evict(self, entry: Entry, reason: str) -> None:
        """`entry` has left RAM, because of `reason`."""
        now_ns = self._clock()
        decision = self.decide(entry, now_ns)
        self._learner.evicted(entry, now_ns)
        if self._settings.archive_mode == "off":
            entry.retire()
            return
        self.decisions[decision.outcome] += 1
        if decision.deadline_ns is None:
            entry.retire()
            return
        if self._settings.archive_mode != "on":
            log.info(
                "eviction_not_archived",
                namespace=self._name,
                key=entry.key[:MAX_LOGGED_KEY],
                size_bytes=entry.value_bytes,
                ttl_seconds=(decision.deadline_ns - now_ns) / SECOND_NS,
                heuristic=decision.heuristic,
                reason=reason,
            )
            entry.retire()
            return
        self._archived.note_eviction(entry.key)
        self._outbox.add(
            Item(
                key=entry.key,
                version=entry.version,
                message_id=next(self._message_ids),
                evicted_at_ns=now_ns,
                entry=entry,
                expires_at_ns=decision.deadline_ns,
                reason=reason,
                heuristic=None if decision.heuristic == WRITER else decision.heuristic,
                score=decision.score,
            )
        )
