"""Whose a store is: a mark in it, compared with what the bus knows of this installation.

See docs/decisions/0020.
"""

import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable

import msgspec
import structlog

from archive.marks import (
    KEY,
    ClaimError,
    Mark,
    MarkRefusedError,
    NotOurStoreError,
    Own,
    OwnUnreadableError,
    foreign,
    not_the_one,
    unmarked,
    unreadable,
)
from archive.store import ObjectRefusedError, ObjectStore, StoreError
from schemas.message import UNDECODABLE
from schemas.protocols import Bucket, RevisionConflictError

log = structlog.get_logger()

ID_BYTES = 8
RECOGNISE_SECONDS = 60.0
"""Between two tries to know a store by its objects: each lists it, and reads the whole index."""


class Claim:
    """Compares both marks, and makes those that are missing.

    A store without a mark is claimed by an installation that has no store yet. By one that has, it
    is claimed only at the place where its store was, and where what is in it is what its index is
    of (`recognises`): its mark was lost. At another place it is a copy at best, and two archivers
    on two copies would each be told that theirs is the one. Every other store has to be adopted,
    by an operator's order. Calls may raise StoreError, and PublishError where the bus does not
    answer. What was not recognised is looked at again `again_seconds` later.
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

    async def check(self, *, keeps: bool = False) -> None:
        """Return where the store is this installation's.

        `keeps`: this archiver keeps the index, so the bus has to call the store as it does. Of
        several that reach one folder by different paths only one may say so, or it would change
        with each check.

        Raises:
            NotOurStoreError: it is not; the text names both, and what to do.
            MarkRefusedError: that cannot be told, by the store; the text says what to do.
            OwnUnreadableError: the same, by the bus.
        """
        while True:
            own, revision = await self._own()
            mark = await self._mark()
            if mark is None:
                if own.store and not await self._is_known(own):
                    raise unmarked(self._place, own)
                store = own.store or _first_id(own.installation, self._place)
                mark = await self._write(
                    Mark(installation=own.installation, store=store), replace=False
                )
            self._compare(own, mark)
            if own.store and (own.description == self._place or not keeps):
                return
            if await self._bind(own, revision, mark):
                return

    async def look(self) -> str:
        """What `check` would find, in a line; nothing is written. Raises as that does."""
        found = await self._read_own()
        own = Own(installation="a new one") if found is None else found[0]
        mark = await self._mark()
        if mark is None:
            if not own.store:
                return "it has no mark yet: the first archiver that starts makes it"
            if not await self._is_known(own):
                raise unmarked(self._place, own)
            return "its mark is gone, and is made anew by the next sweep or start"
        self._compare(own, mark)
        return f"store {mark.store} of installation {own.installation}, as the bus has it"

    async def look_for_lost(self) -> None:
        """As `look`, where there is no such place; fine where the bus knows none there either."""
        found = await self._read_own()
        if found is not None and found[0].store and found[0].description == self._place:
            raise unmarked(self._place, found[0])

    async def adopt(self) -> None:
        """Have the store be this installation's, whosever it was; that one is refused it then.

        What the bus has of this installation, where it is not readable, is written anew as well,
        with a new id: taken from the mark, two installations might have one.
        """
        while True:
            try:
                own, revision = await self._own()
            except OwnUnreadableError as error:
                await self._replace_own(error)
                continue
            try:
                mark = await self._mark()
            except ClaimError:
                mark = None
            if mark is None or mark.installation != own.installation:
                wanted = Mark(installation=own.installation, store=_new_id())
                log.warning("archive_adopted", store=self._place, before=mark)
                mark = await self._write(wanted, replace=True)
            is_bound = own.store == mark.store and own.description == self._place
            if is_bound or await self._bind(own, revision, mark):
                return

    @property
    def _place(self) -> str:
        return self._store.description

    async def _is_known(self, own: Own) -> bool:
        if own.description != self._place or time.monotonic() < self._unknown_until:
            return False
        is_known = await self._recognises()
        self._unknown_until = 0.0 if is_known else time.monotonic() + self._again_seconds
        return is_known

    def _compare(self, own: Own, mark: Mark) -> None:
        if mark.installation != own.installation:
            raise foreign(self._place, own, mark)
        if own.store not in ("", mark.store):
            raise not_the_one(self._place, own, f"is store {mark.store}")

    async def _own(self) -> tuple[Own, int]:
        while True:
            found = await self._read_own()
            if found is not None:
                return found
            try:
                await self._state.create(KEY, msgspec.json.encode(Own(installation=_new_id())))
            except RevisionConflictError:
                continue  # another archiver was first

    async def _read_own(self) -> tuple[Own, int] | None:
        found = await self._state.get(KEY)
        if found is None:
            return None
        content, revision = found
        try:
            return msgspec.json.decode(content, type=Own), revision
        except UNDECODABLE as error:
            raise OwnUnreadableError(str(error), revision) from error

    async def _replace_own(self, error: OwnUnreadableError) -> None:
        log.warning("archive_owner_replaced", reason=str(error))
        own = msgspec.json.encode(Own(installation=_new_id()))
        try:
            await self._state.update(KEY, own, error.revision)
        except RevisionConflictError:
            return  # another one wrote it: read that

    async def _bind(self, own: Own, revision: int, mark: Mark) -> bool:
        """Make it the installation's one store; False: another archiver was first."""
        bound = msgspec.structs.replace(own, store=mark.store, description=self._place)
        try:
            await self._state.update(KEY, msgspec.json.encode(bound), revision)
        except RevisionConflictError:
            return False
        return True

    async def _mark(self) -> Mark | None:
        try:
            content = await self._store.read_mark()
        except ObjectRefusedError as error:
            raise MarkRefusedError(unreadable(self._place, error.reason)) from error
        if content is None:
            return None
        try:
            return msgspec.json.decode(content, type=Mark)
        except UNDECODABLE as error:
            raise NotOurStoreError(unreadable(self._place, str(error))) from error

    async def _write(self, mark: Mark, *, replace: bool) -> Mark:
        """What is there then: another archiver may have been first."""
        await self._store.write_mark(msgspec.json.encode(mark), replace=replace)
        found = await self._mark()
        if found is None:
            raise StoreError(f"archive {self._place}: its mark is gone at once")
        return found


def _first_id(installation: str, place: str) -> str:
    """Of a store that the installation begins with: the same of all archivers that begin at once.

    Not every server heeds `If-None-Match`: the mark of the second would replace that of the first,
    and both be refused. Another place is another store.
    """
    named = f"{installation}\n{place}".encode()
    return hashlib.blake2b(named, digest_size=ID_BYTES).hexdigest()


def _new_id() -> str:
    return secrets.token_hex(ID_BYTES)
