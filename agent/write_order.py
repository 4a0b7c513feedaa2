"""The order of one client's writes: of a key, and of the entries of a tag that is deleted."""

import asyncio
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from agent.asking import TIMER_SECONDS, UNANSWERED, Deadline
from schemas.protocols import RequestError


class WriteOrder:
    """Lets writes take effect in the order in which they were begun, where that matters.

    A write waits for the one of each of its keys that was begun before it; a deletion by tag for
    what was begun with that tag, and what has the tag for its deletion. Nothing else waits. Each
    waits for what was begun before it, so none for ever. O(1) for each key and tag of a write;
    kept is nothing but what is under way.
    """

    def __init__(self) -> None:
        self._last: dict[str, Write] = {}
        self._tags: dict[str, _Tag] = {}

    def __len__(self) -> int:
        """Keys and tags with writes under way."""
        return len(self._last) + len(self._tags)

    def begin(self, keys: Iterable[str], tags: Iterable[str] = ()) -> "Write":
        """A write of these keys; what it puts has these tags. Enter it at once."""
        write = Write(self, keys, tags)
        for key in write.keys:
            before = self._last.get(key)
            if before is not None:
                before.precede(write)
            self._last[key] = write
        for name in write.tags:
            tag = self._tags.setdefault(name, _Tag())
            if tag.deletion is not None:
                tag.deletion.precede(write)
            tag.puts[write] = None
        return write

    def begin_deletion(self, name: str) -> "Write":
        """A deletion of all that has the tag. Enter it at once."""
        write = Write(self, (), (name,))
        tag = self._tags.setdefault(name, _Tag())
        if tag.deletion is not None:
            tag.deletion.precede(write)
        for put in tag.puts:
            put.precede(write)
        tag.deletion, tag.puts = write, {}  # it stands for all before it
        return write

    def forget(self, write: "Write") -> None:
        """It is done, and so is all that it waited for."""
        for key in write.keys:
            if self._last.get(key) is write:
                del self._last[key]
        for name in write.tags:
            tag = self._tags[name]
            tag.puts.pop(write, None)
            if tag.deletion is write:
                tag.deletion = None
            if tag.deletion is None and not tag.puts:
                del self._tags[name]


class Write:
    """One write, while it is entered: `come` waits for its turn.

    Who leaves before its turn lets nobody pass: what comes after it waits for what it waited for.
    """

    __slots__ = (
        "_began_at",
        "_deadline",
        "_followers",
        "_has_ended",
        "_left",
        "_order",
        "_turn",
        "_unanswered",
        "after_silence",
        "has_waited",
        "keys",
        "tags",
    )

    def __init__(self, order: WriteOrder, keys: Iterable[str], tags: Iterable[str]) -> None:
        self.keys = tuple(dict.fromkeys(keys))
        self.tags = tuple(dict.fromkeys(tags))
        self.has_waited = False
        self.after_silence = False
        """Whether one that it waited for got no answer."""
        self._order = order
        self._began_at = time.monotonic()
        self._deadline: Deadline | None = None
        self._left = 0
        self._followers: list[Write] = []
        self._turn: asyncio.Future[None] | None = None
        self._unanswered = False
        self._has_ended = False

    @property
    def waits(self) -> bool:
        """Whether it is not its turn yet."""
        return self._left > 0

    async def come(self, deadline: Deadline) -> None:
        """Wait for its turn.

        Raises:
            RequestError: 408, it did not come by the deadline.
        """
        self._deadline = deadline
        if not self._left:
            return
        self.has_waited = True
        self._turn = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(deadline.left_seconds):
                await self._turn
        except TimeoutError:
            raise deadline.error from None

    def answer_seconds(self, request_seconds: float) -> float:
        """How long to wait for the first answer, where others are waited for so long.

        Where a write before it got none, its own time began when it was begun: many of one key
        that nobody answers then fail together, not one after the other.

        Raises:
            RequestError: 408, that time is over.
        """
        if not self.after_silence:
            return request_seconds
        left_seconds = self._began_at + request_seconds - time.monotonic()
        if left_seconds <= 0:
            raise RequestError(
                UNANSWERED,
                f"no answer within {request_seconds:g} s to a write of the same key or tag that "
                "was begun before: this one was not sent",
            )
        return left_seconds

    def _is_silence(self, error: BaseException | None) -> bool:
        """Whether that is for want of an answer; at its deadline it may only have been slow."""
        if not isinstance(error, RequestError) or error.code != UNANSWERED:
            return False
        return self._deadline is None or self._deadline.left_seconds > TIMER_SECONDS

    def precede(self, follower: "Write") -> None:
        """`follower` is to wait for this one."""
        if follower is not self:
            self._followers.append(follower)
            follower._left += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._has_ended = True
        if self._left:
            return
        self._unanswered = self._is_silence(error)
        done = [self]
        while done:  # not by recursion: thousands may have given up one behind the other
            one = done.pop()
            self._order.forget(one)
            for follower in one._followers:
                follower._left -= 1
                follower.after_silence |= one._unanswered
                if follower._left:
                    continue
                if follower._has_ended:
                    follower._unanswered = follower.after_silence
                    done.append(follower)
                elif follower._turn is not None and not follower._turn.done():
                    follower._turn.set_result(None)
            one._followers.clear()


class _Tag:
    """The last deletion that was begun, and the puts since."""

    __slots__ = ("deletion", "puts")

    def __init__(self) -> None:
        self.deletion: Write | None = None
        self.puts: dict[Write, None] = {}
