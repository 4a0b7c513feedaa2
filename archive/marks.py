"""What is written down of whose a store is, in it and on the bus, and what refuses a store."""

from typing import Annotated

import msgspec
from msgspec import Meta

from archive.store import StoreError

KEY = "archive.owner"
"""In the bucket `fleet-state`: it outlives a deleted index."""
ADOPT = "resource-agent archive reindex --adopt"
Id = Annotated[str, Meta(min_length=1)]


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Lies in the store: the installation that it belongs to, and an id of its own."""

    installation: Id
    store: Id


class Own(msgspec.Struct, frozen=True, kw_only=True):
    """Lies in the bus: this installation, and the store that all its archivers use.

    `store` empty: none was used yet. `description` is how the archiver that keeps the index calls
    it.
    """

    installation: Id
    store: str = ""
    description: str = ""


class ClaimError(StoreError):
    """Whose the store is forbids to work on it, or is not known; an operator has to decide."""


class NotOurStoreError(ClaimError):
    """The store belongs to another installation, or this one's archive is in another store."""


class MarkRefusedError(ClaimError):
    """The store gives other objects and not its mark, so nobody knows whose it is."""


class OwnUnreadableError(ClaimError):
    """What the bus has of this installation, at this revision, is not readable."""

    def __init__(self, reason: str, revision: int) -> None:
        super().__init__(
            f"what the bus knows of whose the archive's store is (`{KEY}` in the bucket "
            f"`fleet-state`) cannot be read ({reason}): put it back as it was; or, where the store "
            f"is this installation's, have both written anew by `{ADOPT}`"
        )
        self.revision = revision


def foreign(place: str, own: Own, mark: Mark) -> NotOurStoreError:
    """The store is another installation's."""
    return NotOurStoreError(
        f"archive {place} belongs to installation {mark.installation}, "
        f"this is {own.installation}: give this one another prefix or folder (archive.store, "
        "archive.folder); or where this is the same one whose nats-server has lost its "
        f"state, or the other one is gone for good, take the store over by `{ADOPT}`"
    )


def unmarked(place: str, own: Own) -> NotOurStoreError:
    """The store has no mark, and is not known as this installation's by what is in it."""
    if own.description != place:
        return not_the_one(place, own, "has no mark yet")
    return NotOurStoreError(
        f"archive {place} has no mark, but the archive of this installation "
        f"({own.installation}), store {own.store}, was there: was it unmounted or emptied, or "
        "is it another one on another machine? Mount or restore it, or have all archivers use "
        f"the same one; or, to go on with what is there now, run `{ADOPT}`"
    )


def not_the_one(place: str, own: Own, what: str) -> NotOurStoreError:
    """The installation's archive is in another store."""
    return NotOurStoreError(
        f"archive {place} {what}, but the archive of this installation "
        f"({own.installation}) is store {own.store} at {own.description}: correct "
        "archive.store or archive.folder of this archiver; or, to go on with this store and "
        f"without what is in the other, stop the archivers of the other and run `{ADOPT}`"
    )


def unreadable(place: str, reason: str) -> str:
    """That the mark of a store cannot be read."""
    return (
        f"archive {place}: its mark of whose it is cannot be read "
        f"({reason}): see to it that it can be; or, where the store is this installation's, "
        f"have it written anew by `{ADOPT}`"
    )
