"""An archiver that does not keep the index: it compresses and stores for the one that does.

See docs/decisions/0014.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence

import msgspec
import structlog

from archive.billing import encode_bill
from archive.index_bucket import IndexBucket
from archive.index_entry import IndexEntry
from archive.keeper import ADMIT, BILL_HEADER, COMMIT, SEGMENT_HEADER
from archive.keeping import Candidate, Eviction, Kept, Verdict, pack
from archive.packer import Packer
from archive.settings import ArchiveSettings
from archive.store import ObjectStore, StoreError
from schemas.message import UNDECODABLE
from schemas.protocols import Clock, PublishError, Requester, RequestError

log = structlog.get_logger()

ADMIT_SECONDS = 5.0
COMMIT_SECONDS = 30.0
"""The keeper looks at the segment in the store, which may be slow."""
ADMIT_BYTES = 128 * 1024

_decode_verdicts = msgspec.msgpack.Decoder(list[Verdict]).decode
_encode = msgspec.msgpack.Encoder().encode


class Helper:
    """Implements Keeping, by asking the archiver that keeps the index; one life as a helper.

    A segment is told to the keeper for as long as that takes, to whoever it is by then; `close`
    gives up. What is told to nobody is found in the store by the next keeper.
    """

    def __init__(
        self,
        store: ObjectStore,
        bucket: IndexBucket,
        settings: ArchiveSettings,
        requester: Requester,
        clock: Clock,
        on_failure: Callable[[IndexEntry, StoreError], Awaitable[None]],
    ) -> None:
        self._store = store
        self._bucket = bucket
        self._settings = settings
        self._requester = requester
        self._clock = clock
        self._is_ready = False
        self.packer = Packer(store, settings, on_failure, self._commit)

    async def ready(self) -> None:
        """Ask the keeper once, and again after each question that it did not answer."""
        if not self._is_ready:
            await self._admit([])

    async def pack_all(self, evictions: Sequence[Eviction]) -> list[Kept]:
        """Pack what the keeper admits."""
        verdicts: list[Verdict] = []
        for some in _pieces([Candidate.of(manifest) for manifest, _ in evictions]):
            verdicts += await self._admit(some)
        return [
            await self._pack(eviction, verdict)
            for eviction, verdict in zip(evictions, verdicts, strict=True)
        ]

    async def _pack(self, eviction: Eviction, verdict: Verdict) -> Kept:
        if verdict.outcome != "stored":
            return verdict.outcome, verdict.known
        return "stored", await pack(self.packer, eviction, verdict, self._clock())

    async def settle_all(self, kept: Sequence[Kept]) -> None:
        """Return once what was packed is in the keeper's index."""
        await self.packer.wait_all([entry for _, entry in kept if entry is not None])

    async def close(self) -> None:
        """Give up what the keeper has not heard of."""
        await self.packer.close()

    async def _admit(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        self._is_ready = False
        try:
            answer = await self._requester.request(
                ADMIT, _encode(candidates), timeout_seconds=ADMIT_SECONDS
            )
            verdicts = _decode_verdicts(answer.payload)
        except (RequestError, *UNDECODABLE) as error:
            raise PublishError(f"the archiver that keeps the index: {error}") from error
        if len(verdicts) != len(candidates):
            raise PublishError("the archiver that keeps the index answers something else")
        self._is_ready = True
        return verdicts

    async def _commit(self, name: str, footer: bytes, _object_bytes: int) -> None:
        await self._bucket.put(name, footer)
        made = self._store.requests.take()
        try:
            await self._commit_until_answered(name, footer, encode_bill(made))
        except BaseException:  # cancelled, too: the next one that is told may count it
            self._store.requests.give_back(made)
            raise

    async def _commit_until_answered(self, name: str, footer: bytes, bill: str) -> None:
        # With each try the same bill: where the answer to the first was lost it is counted
        # already, and would be once more with another segment.
        headers = {SEGMENT_HEADER: name, BILL_HEADER: bill}
        while True:
            try:
                await self._requester.request(
                    COMMIT, footer, headers, timeout_seconds=COMMIT_SECONDS
                )
            except RequestError as error:
                if error.code == 404:
                    raise PublishError(f"segment {name}: {error.text}") from error
                log.warning("segment_not_committed", segment=name, error=str(error))
            else:
                return
            await asyncio.sleep(self._settings.retry_seconds)


def _pieces(candidates: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    """Not more of them than fit into a message."""
    piece: list[Candidate] = []
    size_bytes = 0
    for candidate in candidates:
        size_bytes += len(_encode(candidate))
        if piece and size_bytes > ADMIT_BYTES:
            yield piece
            piece, size_bytes = [], len(_encode(candidate))
        piece.append(candidate)
    if piece:
        yield piece
