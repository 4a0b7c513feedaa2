"""Gets and puts of small values that are asked for at once travel together, as mget and mput.

A message costs far more than a look-up. Who asks for one after the other notices nothing: only
what begins while another is under way waits, for the rest of the event loop's turn, for those
that begin with it.
"""

import asyncio
import copy
import enum
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec

from agent.asking import BUSY, REQUEST_SECONDS, TIMER_SECONDS, Asking, Deadline
from schemas.api import BatchEntry, BatchError
from schemas.protocols import RequestError

MOST_TOGETHER = 64
FEWEST_TOGETHER = 4
"""Values so large that no more of them fit into a message are asked for alone."""
MESSAGE_BYTES = 256 * 1024
"""Of values in one message, about: as many as make a message's own cost small."""
KEY_BYTES = 512
"""Longer keys go alone, so that a message of them is never too large."""
VALUE_BYTES = MESSAGE_BYTES // FEWEST_TOGETHER
"""Larger values are put alone."""
OPEN_MESSAGES = 4
"""With so many kinds of headers in one turn, or fewer, each finds its own message."""
TELLING_AT_ONCE = 4
"""Messages of which the archive has to be told. More would only wait there, and some too long."""
_ALONE_AFTER = (400, 413, 429)
"""Refusals of a message that may not be one of each in it; alone it says so, or is waited for."""
_SMOOTHING = 1 / 16

T = TypeVar("T")
R = TypeVar("R")


class _Alone(enum.Enum):
    ALONE = enum.auto()


ALONE: Final = _Alone.ALONE
"""It is to be asked for by itself."""
Alone: TypeAlias = Literal[_Alone.ALONE]


class _Later(enum.Enum):
    LATER = enum.auto()


LATER: Final = _Later.LATER
"""It is not answered yet."""
Later: TypeAlias = Literal[_Later.LATER]


_encode = msgspec.json.encode
_decode_sizes = msgspec.json.Decoder(list[int | None]).decode
_decode_versions = msgspec.json.Decoder(list[str | BatchError]).decode


class _Message(Generic[T, R]):
    """What travels together: different keys, with the same headers."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = headers
        self.items: dict[str, T] = {}
        self.futures: list[asyncio.Future[R | Alone]] = []
        self.size_bytes = 0

    def drop_done(self) -> None:
        """Leave out what is answered, and what nobody waits for: its caller may have gone on."""
        waiting = [not future.done() for future in self.futures]
        if not all(waiting):
            self.items = dict(itertools.compress(self.items.items(), waiting))
            self.futures = list(itertools.compress(self.futures, waiting))

    def settle(self, results: Sequence[R | Alone | Later | RequestError]) -> None:
        """Tell each what it asked for, but whose result is `LATER`."""
        for future, result in zip(self.futures, results, strict=True):
            if future.done() or isinstance(result, _Later):  # or nobody waits any more
                continue
            if isinstance(result, RequestError):
                future.set_exception(result)
            else:
                future.set_result(result)

    def fail(self, error: Exception) -> None:
        """Each has an error of its own: one that is raised twice tells of both places."""
        for future in self.futures:
            if not future.done():
                future.set_exception(_another(error))


class _Coalescing(Generic[T, R]):
    """Collects what is asked for in one turn of the event loop, and sends it."""

    def __init__(self, asking: Callable[[], Asking]) -> None:
        """`asking`: makes what asks for one message, which fails at once where it is busy."""
        self._asking = asking
        self._open: list[_Message[T, R]] = []
        self._keys: set[str] = set()
        self._sending: set[asyncio.Task[None]] = set()
        self.under_way = 0
        """How many are asked for alone now."""

    @property
    def others_are_under_way(self) -> bool:
        """Whether it may pay to wait for those that are asked for in the same turn."""
        return bool(self.under_way or self._sending or self._open)

    async def _together(
        self, key: str, item: T, headers: Mapping[str, str], size_bytes: int, most: int
    ) -> R | Alone:
        if key in self._keys:  # it counts each time that it is asked for
            return ALONE
        loop = asyncio.get_running_loop()
        if not self._open:
            loop.call_soon(self._send)
        for message in self._open[-OPEN_MESSAGES:]:
            if (
                message.headers == headers
                and len(message.items) < most
                and message.size_bytes + size_bytes <= MESSAGE_BYTES
            ):
                break
        else:
            message = _Message(headers)
            self._open.append(message)
        future: asyncio.Future[R | Alone] = loop.create_future()
        self._keys.add(key)
        message.items[key] = item
        message.futures.append(future)
        message.size_bytes += size_bytes
        return await future

    def _send(self) -> None:
        messages, self._open, self._keys = self._open, [], set()
        for message in messages:
            if len(message.futures) == 1:
                message.settle([ALONE])
                continue
            task = asyncio.get_running_loop().create_task(self._exchange(message))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _exchange(self, message: _Message[T, R]) -> None:
        """Ask, and tell each what it asked for; never raises."""
        message.drop_done()
        try:
            if message.futures:
                message.settle(await self._ask(message))
        except RequestError as error:
            if error.code in _ALONE_AFTER:
                message.settle([ALONE] * len(message.futures))
            else:
                message.fail(error)
        except asyncio.CancelledError:
            for future in message.futures:
                future.cancel()
            raise
        except Exception as error:
            message.fail(error)

    async def _ask(self, message: _Message[T, R]) -> Sequence[R | Alone | Later | RequestError]:
        """What each of the message asked for; it may settle some of it before."""
        raise NotImplementedError


class Gets(_Coalescing[None, "bytes | None"]):
    """Gets. What the archive may have, what is large and what found no room is `ALONE`."""

    def __init__(self, asking: Callable[[], Asking]) -> None:
        super().__init__(asking)
        self._value_bytes = 0.0

    @property
    def worth_it(self) -> bool:
        """Whether a get that begins now may travel with others."""
        return self.others_are_under_way and self._most >= FEWEST_TOGETHER

    @property
    def _most(self) -> int:
        if self._value_bytes * MOST_TOGETHER <= MESSAGE_BYTES:
            return MOST_TOGETHER
        return int(MESSAGE_BYTES / self._value_bytes)

    async def get(self, key: str, headers: Mapping[str, str]) -> bytes | Alone | None:
        """The value, None for a miss, or `ALONE`."""
        return await self._together(key, None, headers, 0, self._most)

    def note(self, value: bytes | None) -> None:
        """What a get by itself gave: so large are values here."""
        if value is not None:
            self._value_bytes += (len(value) - self._value_bytes) * _SMOOTHING

    async def _ask(
        self, message: _Message[None, bytes | None]
    ) -> list[bytes | Alone | RequestError | None]:
        headers = {**message.headers, "Fleet-No-Wait": "1"}
        payload = (await self._asking().ask("mget", _encode(list(message.items)), headers)).payload
        end = payload.index(b"\n") + 1
        values: list[bytes | Alone | RequestError | None] = []
        for size in _decode_sizes(payload[:end]):
            if size is None:
                values.append(None)
            elif size < 0:
                values.append(ALONE)
            else:
                value = payload[end : end + size]
                end += size
                values.append(value)
                self.note(value)
        return values


class _Put(NamedTuple):
    line: bytes
    value: bytes
    deadline: Deadline


class Puts(_Coalescing[_Put, str]):
    """Puts of values of at most `VALUE_BYTES`."""

    def __init__(self, asking: Callable[[], Asking]) -> None:
        super().__init__(asking)
        self._telling = asyncio.Semaphore(TELLING_AT_ONCE)

    async def put(
        self, entry: BatchEntry, value: bytes, headers: Mapping[str, str], deadline: Deadline
    ) -> str | Alone:
        """The version, or `ALONE`; `headers` hold for all in the message.

        Raises:
            RequestError: the entry was refused.
        """
        try:
            line = _encode(entry)
        except (TypeError, ValueError, OverflowError):  # of numpy, say: a header takes its text
            return ALONE
        size_bytes = len(line) + len(value)
        item = _Put(line, value, deadline)
        return await self._together(entry.key, item, headers, size_bytes, MOST_TOGETHER)

    async def _ask(
        self, message: _Message[_Put, str]
    ) -> Sequence[str | Alone | Later | RequestError]:
        """Those of which the archive has to be told go again, in a message of their own.

        Nobody else waits until it is told, and those do not need one message each.
        """
        results = await self._mput(message, {"Fleet-No-Wait": "1"})
        if results.count(LATER) < FEWEST_TOGETHER:
            return [ALONE if one is LATER else one for one in results]
        message.settle(results)
        message.drop_done()
        if not await self._come(message):
            return []
        try:
            results = await self._mput(message, {})
        finally:
            self._telling.release()
        return [ALONE if one is LATER else one for one in results]

    async def _come(self, message: _Message[_Put, str]) -> bool:
        """Wait until few enough tell the archive; who has no time for that goes alone.

        False: nobody is left.
        """
        while message.futures:
            left_seconds = [item.deadline.left_seconds for item in message.items.values()]
            try:
                async with asyncio.timeout(max(0.0, min(left_seconds) - REQUEST_SECONDS)):
                    await self._telling.acquire()
            except TimeoutError:
                hurry = min(left_seconds) + TIMER_SECONDS
                message.settle([ALONE if left <= hurry else LATER for left in left_seconds])
                message.drop_done()
                continue
            message.drop_done()
            if message.futures:
                return True
            self._telling.release()
        return False

    async def _mput(
        self, message: _Message[_Put, str], more: Mapping[str, str]
    ) -> list[str | Alone | Later | RequestError]:
        items = message.items.values()
        lines = b",".join(item.line for item in items)
        payload = b"".join((b"[", lines, b"]\n", *(item.value for item in items)))
        answer = await self._asking().ask("mput", payload, {**message.headers, **more})
        return [_version(one) for one in _decode_versions(answer.payload)]


def _version(one: str | BatchError) -> str | Alone | Later | RequestError:
    if isinstance(one, str):
        return one
    if one.code == BUSY and one.retry_after_seconds == 0:
        return LATER
    return ALONE if one.code in _ALONE_AFTER else RequestError(one.code, one.error)


def _another(error: Exception) -> Exception:
    if isinstance(error, RequestError):
        return RequestError(error.code, error.text)
    try:
        return copy.copy(error)
    except Exception:  # it cannot be made from what it says it was made from
        return error
