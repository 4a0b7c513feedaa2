"""Whose a store is: a mark in it, compared with what the bus knows of this installation.

See docs/decisions/0020.
"""

import secrets
import time
from collections.abc import Awaitable, Callable

import msgspec
import structlog

from archive.store import ObjectRefusedError, ObjectStore, StoreError
from schemas.message import UNDECODABLE
from schemas.protocols import Bucket, RevisionConflictError

log = structlog.get_logger()

KEY = "archive.owner"
"""In the bucket `fleet-state`: it outlives a deleted index."""
ADOPT = "resource-agent archive reindex --adopt"
ID_BYTES = 8
RECOGNISE_SECONDS = 60.0
"""Between two tries to know a store by its objects: each lists it, and reads the whole index."""


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Lies in the store: the installation that it belongs to, and an id of its own."""

    installation: str
    store: str


class Own(msgspec.Struct, frozen=True, kw_only=True):
    """Lies in the bus: this installation, and the store that all its archivers use.

    `store` empty: none was used yet. `description` is how that one's archiver calls it.
    """

    installation: str
    store: str = ""
    description: str = ""


class NotOurStoreError(StoreError):
    """The store belongs to another installation, or this one's archive is in another store."""


class MarkRefusedError(StoreError):
    """The store gives other objects and not its mark, so nobody knows whose it is."""


class Claim:
    """Compares both marks, and makes those that are missing.

    A store without a mark is claimed by an installation that has no store yet, and by one whose
    index names objects in it (`recognises`): its mark was lost. Every other store has to be
    adopted, by an operator's order. Calls may raise StoreError, and PublishError where the bus
    does not answer. What was not recognised is looked at again `again_seconds` later.
    """

    def __init__(
        self,
        store: ObjectStore,
        state: Bucket,
        recognises: Callable[[], Awaitable[bool]],
        again_seconds: float = RECOGNISE_SECONDS,
    ) -> None:
        self._store = store
        self._state = state
        self._recognises = recognises
        self._again_seconds = again_seconds
        self._unknown_until = 0.0

    async def check(self) -> None:
        """Return where the store is this installation's.

        Raises:
            NotOurStoreError: it is not; the text names both, and what to do.
            MarkRefusedError: that cannot be told; the text says what to do.
        """
        while True:
            own, revision = await self._own()
            mark = await self._mark()
            if mark is None:
                if own.store and not await self._is_known():
                    raise self._unmarked(own)
                store = own.store or _new_id()
                mark = await self._write(
                    Mark(installation=own.installation, store=store), replace=False
                )
            if mark.installation != own.installation:
                raise self._foreign(own, mark)
            if own.store == mark.store:
                return
            if own.store:
                raise self._not_the_one(own, f"is store {mark.store}")
            if await self._bind(own, revision, mark):
                return

    async def adopt(self) -> None:
        """Have the store be this installation's, whosever it was; that one is refused it then."""
        while True:
            own, revision = await self._own()
            try:
                mark = await self._mark()
            except (NotOurStoreError, MarkRefusedError):
                mark = None
            if mark is None or mark.installation != own.installation:
                wanted = Mark(installation=own.installation, store=_new_id())
                log.warning("archive_adopted", store=self._store.description, before=mark)
                mark = await self._write(wanted, replace=True)
            if own.store == mark.store or await self._bind(own, revision, mark):
                return

    async def _is_known(self) -> bool:
        if time.monotonic() < self._unknown_until:
            return False
        is_known = await self._recognises()
        self._unknown_until = 0.0 if is_known else time.monotonic() + self._again_seconds
        return is_known

    async def _own(self) -> tuple[Own, int]:
        while True:
            found = await self._state.get(KEY)
            if found is not None:
                content, revision = found
                try:
                    return msgspec.json.decode(content, type=Own), revision
                except UNDECODABLE as error:
                    raise StoreError(f"{KEY} in the bucket of states: {error}") from error
            try:
                await self._state.create(KEY, msgspec.json.encode(Own(installation=_new_id())))
            except RevisionConflictError:
                continue  # another archiver was first

    async def _bind(self, own: Own, revision: int, mark: Mark) -> bool:
        """Make it the installation's one store; False: another archiver was first."""
        bound = msgspec.structs.replace(own, store=mark.store, description=self._store.description)
        try:
            await self._state.update(KEY, msgspec.json.encode(bound), revision)
        except RevisionConflictError:
            return False
        return True

    async def _mark(self) -> Mark | None:
        try:
            content = await self._store.read_mark()
        except ObjectRefusedError as error:
            raise MarkRefusedError(self._unreadable(error.reason)) from error
        if content is None:
            return None
        try:
            return msgspec.json.decode(content, type=Mark)
        except UNDECODABLE as error:
            raise NotOurStoreError(self._unreadable(str(error))) from error

    async def _write(self, mark: Mark, *, replace: bool) -> Mark:
        """What is there then: another archiver may have been first."""
        await self._store.write_mark(msgspec.json.encode(mark), replace=replace)
        found = await self._mark()
        if found is None:
            raise StoreError(f"archive {self._store.description}: its mark is gone at once")
        return found

    def _unreadable(self, reason: str) -> str:
        return (
            f"archive {self._store.description}: its mark of whose it is cannot be read "
            f"({reason}): see to it that it can be; or, where the store is this installation's, "
            f"have it written anew by `{ADOPT}`"
        )

    def _foreign(self, own: Own, mark: Mark) -> NotOurStoreError:
        return NotOurStoreError(
            f"archive {self._store.description} belongs to installation {mark.installation}, "
            f"this is {own.installation}: give this one another prefix or folder (archive.store, "
            "archive.folder); or where this is the same one whose nats-server has lost its "
            f"state, or the other one is gone for good, take the store over by `{ADOPT}`"
        )

    def _unmarked(self, own: Own) -> NotOurStoreError:
        if own.description != self._store.description:
            return self._not_the_one(own, "has no mark yet")
        return NotOurStoreError(
            f"archive {self._store.description} has no mark, but the archive of this installation "
            f"({own.installation}), store {own.store}, was there: was it unmounted or emptied, or "
            "is it another one on another machine? Mount or restore it, or have all archivers use "
            f"the same one; or, to go on without what it held, run `{ADOPT}`"
        )

    def _not_the_one(self, own: Own, what: str) -> NotOurStoreError:
        return NotOurStoreError(
            f"archive {self._store.description} {what}, but the archive of this installation "
            f"({own.installation}) is store {own.store} at {own.description}: correct "
            "archive.store or archive.folder of this archiver; or, to go on with this store and "
            f"without what is in the other, stop the archivers of the other and run `{ADOPT}`"
        )


def _new_id() -> str:
    return secrets.token_hex(ID_BYTES)
