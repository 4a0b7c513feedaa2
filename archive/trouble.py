"""What of a store is not well, counted and named for as long as it stands."""

from collections import defaultdict
from collections.abc import Mapping

import structlog

from archive.index import NamespaceIndex
from archive.index_entry import IndexEntry
from archive.store import ObjectRefusedError

log = structlog.get_logger()

NAMED = 5
"""Objects in a line of health; `archive status` and the log name more."""


class Trouble:
    """Objects that the store does not let us read or remove, and values found damaged.

    A refused object stands until it is readable, or gone. A damaged value stands until its key is
    stored anew, deleted or cleared, until it would have expired, or `forget_damage`. Bounded by
    the objects and keys there are.
    """

    def __init__(self) -> None:
        self.unreadable: dict[str, str] = {}
        self.irremovable: dict[str, str] = {}
        self._damaged: defaultdict[str, dict[str, IndexEntry]] = defaultdict(dict)

    def cannot_read(self, error: ObjectRefusedError) -> None:
        """The object cannot be read now, while others can."""
        if error.name not in self.unreadable:
            log.warning("archived_object_refused", name=error.name, reason=error.reason)
        self.unreadable[error.name] = error.reason

    def can_read(self, name: str) -> None:
        """The object was read, or is gone."""
        if self.unreadable and self.unreadable.pop(name, None) is not None:
            log.info("archived_object_readable", name=name)

    def cannot_remove(self, error: ObjectRefusedError) -> None:
        """The object, of which nothing is needed, cannot be removed now, while others can."""
        if error.name not in self.irremovable:
            log.warning("archived_object_stays", name=error.name, reason=error.reason)
        self.irremovable[error.name] = error.reason

    def removed(self, name: str) -> None:
        """The object is gone."""
        self.irremovable.pop(name, None)
        self.can_read(name)

    def found_damaged(self, entry: IndexEntry) -> None:
        """What was stored of this value cannot be given back any more."""
        self._damaged[entry.namespace][entry.key] = entry

    def replaced(self, entry: IndexEntry) -> None:
        """This is in the index, and may be newer than what was damaged of its key."""
        found = self._damaged.get(entry.namespace)
        if found and entry.key in found and entry.order >= found[entry.key].order:
            del found[entry.key]

    def forget_damage(self) -> None:
        """An operator has been told, and has had the index written anew."""
        self._damaged.clear()

    def damaged(self, namespace: str, index: NamespaceIndex, now_ns: int) -> int:
        """How many values of the namespace were found damaged, and would be there now."""
        found = self._damaged.get(namespace)
        if not found:
            return 0
        for entry in list(found.values()):
            if (
                entry.is_expired(now_ns)
                or entry.generation < index.generation
                or index.is_deleted(entry.tags, entry.order)
            ):
                del found[entry.key]
        return len(found)

    def text(self, namespaces: Mapping[str, NamespaceIndex], now_ns: int) -> str:
        """All of it in one line for people; empty: all is well."""
        parts = [
            _named(self.unreadable, "cannot be read"),
            _named(self.irremovable, "cannot be removed"),
        ]
        for namespace in sorted(self._damaged):
            index = namespaces.get(namespace) or NamespaceIndex()
            count = self.damaged(namespace, index, now_ns)
            if count:
                values = "value" if count == 1 else "values"
                parts.append(
                    f"{count} {values} of namespace {namespace} found damaged: gone until put anew"
                )
        return "; ".join(filter(None, parts))


def _named(objects: Mapping[str, str], what: str) -> str:
    if not objects:
        return ""
    count = f"{len(objects)} object" if len(objects) == 1 else f"{len(objects)} objects"
    first = [f"{name} ({reason})" for name, reason in list(objects.items())[:NAMED]]
    more = ["…"] if len(objects) > NAMED else []
    return f"{count} {what}: {', '.join([*first, *more])}"
