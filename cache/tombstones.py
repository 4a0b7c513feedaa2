"""What tells the archive that older versions of a key or tag are gone."""

from collections.abc import Iterator

from cache.archived import ArchivedKeys
from cache.outbox import Item, Outbox
from schemas.protocols import Clock


class OutboxCrowdedError(Exception):
    """Too many tombstones wait for the eviction stream: a write that needs one is refused."""


class Tombstones:
    """Puts one into the outbox where the archive may hold what a write made outdated."""

    def __init__(
        self,
        archived: ArchivedKeys,
        outbox: Outbox,
        message_ids: Iterator[str],
        clock: Clock,
        *,
        archiving: bool,
    ) -> None:
        self._archived = archived
        self._outbox = outbox
        self._message_ids = message_ids
        self._clock = clock
        self._archiving = archiving

    def needed(self, key: str) -> bool:
        """Whether a write of `key` must be told to the archive."""
        return self._archiving and self._archived.may_hold(key)

    def check_room(self, key: str) -> None:
        """Whether `key` can be written.

        Raises:
            OutboxCrowdedError: it needs a tombstone, and there are too many.
        """
        if self._outbox.crowded and self.needed(key):
            raise OutboxCrowdedError

    def check_room_for_tag(self) -> None:
        """Whether a tag can be deleted.

        Raises:
            OutboxCrowdedError: there are too many tombstones.
        """
        if self._archiving and self._outbox.crowded:
            raise OutboxCrowdedError

    def of_key(self, key: str, version: str) -> Item | None:
        """Versions of `key` below `version` are gone; None where the archive has none."""
        return self._add(key, version) if self.needed(key) else None

    def of_tag(self, tag: str, version: str) -> Item | None:
        """Those of every key with `tag` are; None where nothing is archived."""
        return self._add("", version, tag) if self._archiving else None

    def of_all(self, version: str) -> Item | None:
        """A generation began; None where nothing is archived.

        As that of a tag that nothing has: it brings the archive the generation, which it would
        otherwise hear of with the next eviction, and keeps it there.
        """
        return self.of_tag("", version)

    def _add(self, key: str, version: str, tag: str | None = None) -> Item:
        tombstone = Item(
            key=key,
            version=version,
            message_id=next(self._message_ids),
            evicted_at_ns=self._clock(),
            reason="superseded",
            tag=tag,
        )
        self._archived.note_tombstone(tombstone.target, version)
        self._outbox.add_tombstone(tombstone)
        return tombstone
