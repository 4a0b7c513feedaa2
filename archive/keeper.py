"""The archiver that keeps the index, as the other archivers ask it: decide, and take into it.

One decides, all of them verify, compress and upload. A helper asks `api.archive.admit` what is to
be done with each eviction it took, stores a segment of those that are to be kept, and has
`api.archive.commit` take it into the index; only then is it announced and acknowledged.
"""

from collections.abc import Callable

import msgspec

from archive import segment
from archive.billing import decode_bill
from archive.frame import ArchiveObjectError
from archive.keeping import Candidate, Count, Verdict
from archive.store import ObjectStore, StoreError, is_name
from archive.vault import Vault
from schemas.message import UNDECODABLE
from schemas.protocols import Answer, Call, Endpoint, RequestError

ADMIT = "api.archive.admit"
COMMIT = "api.archive.commit"
SEGMENT_HEADER = "Fleet-Segment"
BILL_HEADER = "Fleet-Store-Bill"
"""What the helper has asked of the store since it told that last."""
MAX_BILLED = 4096
"""Segments whose bill is known, so that one told again is not counted again."""

_decode_candidates = msgspec.msgpack.Decoder(list[Candidate]).decode


class Keeper:
    """Answers helpers from the index of this process.

    `is_owner` says whether it still is the index; `count` is told what becomes of their evictions.
    """

    def __init__(
        self, vault: Vault, store: ObjectStore, is_owner: Callable[[], bool], count: Count
    ) -> None:
        self._vault = vault
        self._store = store
        self._is_owner = is_owner
        self._count = count
        self._billed: dict[str, None] = {}

    def endpoints(self) -> list[Endpoint]:
        """Raw, MessagePack."""
        return [
            Endpoint("archive_admit", ADMIT, self.admit),
            Endpoint("archive_commit", COMMIT, self.commit),
        ]

    def admit(self, call: Call) -> Answer:
        """A `Verdict` for each `Candidate`."""
        self._check_owner()
        try:
            candidates = _decode_candidates(call.payload)
        except UNDECODABLE as error:
            raise RequestError(400, f"these are no candidates: {error}") from error
        verdicts = [self._decide(candidate) for candidate in candidates]
        return Answer(msgspec.msgpack.encode(verdicts))

    def _decide(self, candidate: Candidate) -> Verdict:
        verdict = self._vault.decide(candidate, only_durable=True)
        if verdict.outcome != "stored":
            self._count(candidate.namespace, (verdict.outcome, verdict.known))
        return verdict

    async def commit(self, call: Call) -> Answer:
        """Take a segment that is in the store, with this footer, into the index.

        404: it is not in the store. Committing it again changes nothing.
        """
        name = call.headers.get(SEGMENT_HEADER, "")
        try:
            bill = decode_bill(call.headers.get(BILL_HEADER, "[]"))
        except UNDECODABLE as error:
            raise RequestError(400, f"{BILL_HEADER}: {error}") from error
        if not is_name(name):
            raise RequestError(400, f"{SEGMENT_HEADER} is not the name of a segment")
        try:
            found = await self._store.stat(name)
        except StoreError as error:
            raise RequestError(503, "the archive's store cannot be read now") from error
        if found is None:
            raise RequestError(404, "that segment is not in the store")
        try:
            entries = segment.read_record(name, call.payload, found.object_bytes)
        except ArchiveObjectError as error:
            raise RequestError(400, f"footer: {error.reason}") from error
        self._check_owner()
        if name not in self._billed:
            self._billed[name] = None
            self._vault.meter.book(bill)
            if len(self._billed) > MAX_BILLED:
                del self._billed[next(iter(self._billed))]
        if self._vault.adopt_one(found, entries):
            for entry in entries:
                self._count(entry.namespace, ("stored", entry))
            await self._vault.trim({entry.namespace for entry in entries})
            self._check_owner()
        return Answer()

    def _check_owner(self) -> None:
        if not self._is_owner():
            raise RequestError(503, "this archiver does not keep the index now; ask again")
