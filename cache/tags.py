"""`delete` with `{"tag": …}`: everything that was put with a tag is gone, archive included."""

import re

import msgspec

from cache.invalidations import Invalidations
from cache.namespace import Namespace
from cache.ours import acknowledged, check_owned
from cache.tombstones import OutboxCrowdedError
from schemas.api import TagReply, TagRequest
from schemas.cache import MAX_TAG_BYTES
from schemas.message import UNDECODABLE
from schemas.protocols import Answer, Call, Lease, RequestError, busy

_BY_TAG = re.compile(rb'\s*\{\s*"tag"\s*:')
_decode = msgspec.json.Decoder(TagRequest).decode


def is_by_tag(payload: bytes) -> bool:
    """Whether the payload of a `delete` names a tag; a key that looks so cannot be deleted."""
    return _BY_TAG.match(payload) is not None


class TagDeletion:
    """Deletes by tag.

    When it has answered, nothing that was put with the tag before is answered again: not from
    RAM or outbox, nor from the archive, whatever is restarted. The archive learns of it by one
    tombstone of the tag, which stands above all versions until then.
    """

    def __init__(
        self,
        namespace: Namespace,
        invalidations: Invalidations,
        lease: Lease,
        tombstone_timeout_seconds: float,
    ) -> None:
        self._namespace = namespace
        self._invalidations = invalidations
        self._lease = lease
        self._tombstone_timeout_seconds = tombstone_timeout_seconds

    async def delete(self, call: Call) -> Answer:
        """Answer the request.

        Raises:
            RequestError: 400 no such request; 429 too many deletions wait; 503 deleted here, but
                the archive is not told yet.
        """
        tag = _tag_of(call.payload)
        check_owned(self._lease, self._namespace.name)
        try:
            entries, version, tombstone = await self._namespace.delete_tag(tag)
        except OutboxCrowdedError:
            raise busy("too many deletions wait for the eviction stream; try later") from None
        await self._invalidations.tag(tag, version, entries)
        outbox, timeout_seconds = self._namespace.outbox, self._tombstone_timeout_seconds
        if not all(await acknowledged(outbox, [tombstone], timeout_seconds)):
            raise RequestError(
                503,
                "deleted here, but the archive could not be told durably yet; it is being tried "
                "again, and until then entries of the tag could return after a restart",
            )
        return Answer(msgspec.json.encode(TagReply(entries=entries, version=version)))


def _tag_of(payload: bytes) -> str:
    try:
        tag = _decode(payload).tag
    except UNDECODABLE as error:
        raise RequestError(400, f"bad request for delete by tag: {error}") from None
    if not 0 < len(tag.encode()) <= MAX_TAG_BYTES:
        raise RequestError(400, f"a tag has 1 to {MAX_TAG_BYTES} bytes, not {len(tag.encode())}")
    return tag
