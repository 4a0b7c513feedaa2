"""Lends large values to the archive: no stream has them until they are stored.

An archiver on this host reads their files; another one asks for their parts. See
docs/decisions/0021 and 0022.
"""

import asyncio
import time

import structlog

from cache.archived import LAST_KEY
from cache.entry import Entry
from cache.manifest import eviction_token, message_of_parts
from cache.namespace import Namespace
from cache.outbox import Item
from cache.settings import Reach
from cache.value_file import ValueFile
from schemas.cache import FILE_HEADER, LENDER_HEADER, encode_header, read_range
from schemas.protocols import (
    Answer,
    Call,
    Endpoint,
    Lease,
    Publisher,
    PublishError,
    Requester,
    RequestError,
)

log = structlog.get_logger()

LENT_SHARE = 0.5
"""Of the outbox: what is lent is in RAM until the store has it, and the rest takes what comes."""
STORED_SECONDS = 5.0
"""Longest wait for a value that is lent, and more by its place in the line behind the others:"""
SLOWEST_BYTES_PER_SECOND = 8 * 1024 * 1024
LEAVING_SECONDS = 1.0
"""The same for a cache that stops."""
ASK_SECONDS = 1.0
UNHEARD_SECONDS = 5.0
"""Until the archive is asked again that did not answer."""
AGAIN_SECONDS = 60.0
"""The same where it can read nothing of this cache, or did not store in time."""
LOOK_SECONDS = 0.01


class Lending:
    """Lends values, while the archive says how it can read them: from files, or over the bus.

    What is lent stays in the outbox, and is acknowledged, once the archive has announced it: in a
    store, not only in the stream. The stream has the manifest meanwhile, so a later owner knows
    that it is on its way. What is not stored in time is given back to the outbox, to be sent.
    """

    def __init__(
        self,
        namespace: Namespace,
        publisher: Publisher,
        requester: Requester,
        lease: Lease,
        instance: str,
        reach: Reach,
    ) -> None:
        self._namespace = namespace
        self._instance = instance
        self._reach = reach
        self._publisher = publisher
        self._requester = requester
        self._lease = lease
        self._sees_files = self._asks_parts = False
        self._ask_at = 0.0
        self._lent: dict[str, Item] = {}
        self._leaving = False
        self._timeouts: set[asyncio.Timeout] = set()
        self._lent_bytes = 0
        self.lent = 0
        """How many values were stored that way."""

    def endpoints(self) -> list[Endpoint]:
        """Gives parts of what is lent, at this instance alone."""
        name = self._namespace.name
        subject = f"cache.{name}.lent.{self._instance}"
        return [Endpoint(f"cache_lent_{name}", subject, self.read)]

    def read(self, call: Call) -> Answer:
        """The bytes `Fleet-Range` of `Fleet-Eviction`; without one nothing: it can be asked.

        Raises:
            RequestError: 404 it is not lent, or not any more; 400 a header is malformed.
        """
        token = call.headers.get("Fleet-Eviction")
        if token is None:
            return Answer()
        item = self._lent.get(token)
        if item is None:
            raise _not_lent()
        entry = _entry_of(item)
        first, end = read_range(call.headers, entry.value_bytes)
        try:
            return Answer(entry.payload(first, end))
        except OSError:  # who lends it finds that out, too
            raise _not_lent() from None

    @property
    def _is_on(self) -> bool:
        return self._sees_files or self._asks_parts

    def hurry(self) -> None:
        """Wait little for what is lent: its files go with this process."""
        self._leaving = True
        loop = asyncio.get_running_loop()
        for timeout in self._timeouts:
            when = timeout.when()
            if when is not None and not timeout.expired():
                timeout.reschedule(min(when, loop.time() + LEAVING_SECONDS))

    async def begins(self, item: Item, tasks: asyncio.TaskGroup) -> bool:
        """Whether it is lent from now on, in `tasks`; False: it is to be sent now.

        It ends acknowledged, not wanted any more, or given back to the outbox, to be sent. Waits
        while others are lent, until the next value might find no room in the outbox: the stream
        has more.
        """
        outbox = self._namespace.outbox
        if item.was_lent or not await self._is_possible(item):
            return False
        room_bytes = LENT_SHARE * outbox.max_bytes - item.size_bytes
        while self._is_on and self._lent_bytes and self._lent_bytes > room_bytes:
            if not outbox.fits(outbox.largest_bytes):
                return False
            await asyncio.sleep(LOOK_SECONDS)
        if not self._is_on:
            return False
        item.was_lent = True
        self._lent_bytes += item.size_bytes
        tasks.create_task(self._lend(item))
        return True

    async def _lend(self, item: Item) -> None:
        try:
            await self._lend_until_settled(item)
        finally:
            self._lent.pop(eviction_token(item), None)
            self._lent_bytes -= item.size_bytes
        if item.stored:
            self._namespace.outbox.acknowledge(item)
        else:
            self._namespace.outbox.give_back(item)

    async def _lend_until_settled(self, item: Item) -> None:
        try:
            await asyncio.to_thread(_entry_of(item).compute_digest)
        except OSError:
            return  # who sends it finds that out, too
        # No pause between this look and the manifest, which is of the generation of now.
        is_wanted = self._namespace.outbox.get(item.key) is item
        how = self._how(item)
        if not is_wanted or not how or not self._lease.held:
            return
        headers, _ = message_of_parts(item, self._namespace)
        self._lent[eviction_token(item)] = item
        item.settled = settled = item.settled or asyncio.Event()
        try:
            await self._publisher.publish_raw(
                f"evicted.{self._namespace.name}",
                b"",
                {**headers, **how},
                message_id=f"{item.message_id}.lent",
            )
        except PublishError:
            return
        if await self._wait(settled):
            self.lent += item.stored
        elif self._is_on and self._namespace.holdings.waiting(item.key) is item.entry:
            self._stop("not stored in time")  # else it has expired, of which nobody is told

    async def _wait(self, settled: asyncio.Event) -> bool:
        seconds = STORED_SECONDS + self._lent_bytes / SLOWEST_BYTES_PER_SECOND
        if self._leaving:
            seconds = LEAVING_SECONDS
        try:
            async with asyncio.timeout(seconds) as timeout:
                self._timeouts.add(timeout)
                try:
                    await settled.wait()
                finally:
                    self._timeouts.discard(timeout)
        except TimeoutError:
            return False
        return True

    async def _is_possible(self, item: Item) -> bool:
        if self._is_on or time.monotonic() < self._ask_at:
            return bool(self._how(item))
        file = _file_of(item) if self._reach != "nowhere" else None
        asked = {} if file is None else {FILE_HEADER: encode_header(file.path)}
        if self._reach == "everywhere":
            asked[LENDER_HEADER] = self._instance
        if not asked:
            return False
        try:
            answer = await self._requester.request(
                f"api.archive.keys.{self._namespace.name}",
                headers={"Fleet-After": LAST_KEY, **asked},
                timeout_seconds=ASK_SECONDS,
            )
        except RequestError as error:  # usual while no archive is there
            log.debug("lending_unheard", namespace=self._namespace.name, error=str(error))
            self._ask_at = time.monotonic() + UNHEARD_SECONDS
            return False
        self._sees_files = "Fleet-Here" in answer.headers
        self._asks_parts = "Fleet-Asks" in answer.headers
        if self._is_on:
            log.info(
                "lending_begins",
                namespace=self._namespace.name,
                by="files" if self._sees_files else "parts",
            )
        elif file is None or file.has_name:  # still, so it was there
            self._stop("the archiver can read nothing of this cache")
        return bool(self._how(item))

    def _how(self, item: Item) -> dict[str, str]:
        """The headers that say how the archive can read it; none: it cannot."""
        how = {LENDER_HEADER: self._instance} if self._asks_parts else {}
        file = _file_of(item)
        if file is not None and self._is_on:
            how[FILE_HEADER] = encode_header(file.path)
        return how

    def _stop(self, reason: str) -> None:
        self._sees_files = self._asks_parts = False
        self._ask_at = time.monotonic() + AGAIN_SECONDS
        log.info("lending_stops", namespace=self._namespace.name, reason=reason)


def _entry_of(item: Item) -> Entry:
    assert item.entry is not None  # noqa: S101 - only values are large
    return item.entry


def _file_of(item: Item) -> ValueFile | None:
    """One that others find by its name."""
    value = _entry_of(item).value
    return value if isinstance(value, ValueFile) and value.has_name else None


def _not_lent() -> RequestError:
    return RequestError(404, "it is not lent, or not any more")
