"""Empty files that the archive is offered, for values whose size only it knows yet."""

import contextlib
from collections.abc import Iterator

from cache.files import Files
from cache.manifest import ForeignAnswerError
from cache.room import Room
from cache.value_file import FileDraft, ValueFile
from schemas.cache import WRITTEN_WITHIN_SECONDS, encode_header

AT_ONCE = 4
SHARE = 8
"""An offer takes this part of the room, so all of them together half of it at most."""
MAX_OFFER_BYTES = 32 * 1024 * 1024


class Offer:
    """A file that an archiver on this host may fill with a value of up to `room_bytes`.

    `headers` tell it so.
    """

    def __init__(self, draft: FileDraft, room_bytes: int) -> None:
        self._draft = draft
        self.headers = {
            "Fleet-File": encode_header(draft.path),
            "Fleet-Room": str(room_bytes),
        }

    def take(self, size_bytes: int) -> ValueFile:
        """What it was filled with: a value that the archiver has verified.

        Raises:
            ForeignAnswerError: it has another size.
        """
        found_bytes = self._draft.size_bytes
        if found_bytes != size_bytes:
            raise ForeignAnswerError(f"a file of {found_bytes} bytes, not {size_bytes}")
        return self._draft.finish()


class Offers:
    """At most `AT_ONCE`, within `room`; whoever gets none asks for ranges.

    Most values are small and leave the file as it was: it is kept for the next.
    """

    def __init__(self, files: Files, room: Room, timeout_seconds: float) -> None:
        """There are none where an answer must come before an archiver would give up writing."""
        self._is_soon = timeout_seconds < 2 * WRITTEN_WITHIN_SECONDS
        self._files = files
        self._room = room
        self._each_bytes = min(MAX_OFFER_BYTES, room.max_bytes // SHARE)
        self._made = 0
        self._spare: list[FileDraft] = []

    @contextlib.contextmanager
    def offer(self, limit_bytes: int) -> Iterator[Offer | None]:
        """One for a value of up to `limit_bytes`, whose room is taken meanwhile; None: not now."""
        draft = self._draft()
        if draft is None:
            yield None
            return
        self._made += 1
        try:
            yield Offer(draft, min(self._each_bytes, limit_bytes))
            # Not after an error: an archiver may still be about to write to it.
            if draft.path and not draft.size_bytes:
                self._spare.append(draft)
        finally:
            self._made -= 1
            self._room.give_back(self._each_bytes)

    def _draft(self) -> FileDraft | None:
        if self._is_soon or self._made >= AT_ONCE or not self._room.take(self._each_bytes):
            return None
        draft = self._spare.pop() if self._spare else self._files.empty()
        if draft is None:
            self._room.give_back(self._each_bytes)
        return draft
