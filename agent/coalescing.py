"""Gets and puts of small values that are asked for at once travel together, as mget and mput.

A message costs far more than a look-up. Who asks for one after the other notices nothing: only
what begins while another is under way waits, for the rest of the event loop's turn, for those
that begin with it.
"""

import asyncio
import enum
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar

import msgspec

from agent.asking import Asking
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

    def drop_given_up(self) -> None:
        """Leave out what nobody waits for any more: its caller may have gone on."""
        waiting = [not future.done() for future in self.futures]
        if not all(waiting):
            self.items = dict(itertools.compress(self.items.items(), waiting))
            self.futures = list(itertools.compress(self.futures, waiting))


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
                _settle(message.futures, [ALONE])
                continue
            task = asyncio.get_running_loop().create_task(self._exchange(message))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _exchange(self, message: _Message[T, R]) -> None:
        """Ask, and tell each what it asked for; never raises."""
        message.drop_given_up()
        if not message.futures:
            return
        try:
            _settle(message.futures, await self._ask(message))
        except RequestError as error:
            if error.code in _ALONE_AFTER:
                _settle(message.futures, [ALONE] * len(message.futures))
            else:
                _fail(message.futures, error)
        except asyncio.CancelledError:
            for future in message.futures:
                future.cancel()
            raise
        except Exception as error:
            _fail(message.futures, error)

    async def _ask(self, message: _Message[T, R]) -> Sequence[R | Alone | RequestError]:
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


class Puts(_Coalescing[tuple[bytes, bytes], str]):
    """Puts of values of at most `VALUE_BYTES`."""

    async def put(self, entry: BatchEntry, value: bytes, headers: Mapping[str, str]) -> str | Alone:
        """The version, or `ALONE`; `headers` hold for all in the message.

        Raises:
            RequestError: the entry was refused.
        """
        try:
            line = _encode(entry)
            is_finite = entry.cost_seconds is None or math.isfinite(entry.cost_seconds)
        except (TypeError, ValueError, OverflowError):  # of numpy, say: a header takes its text
            return ALONE
        if not is_finite:  # JSON would say nothing
            return ALONE
        size_bytes = len(line) + len(value)
        return await self._together(entry.key, (line, value), headers, size_bytes, MOST_TOGETHER)

    async def _ask(
        self, message: _Message[tuple[bytes, bytes], str]
    ) -> list[str | Alone | RequestError]:
        items = message.items.values()
        lines = b",".join(line for line, _ in items)
        payload = b"".join((b"[", lines, b"]\n", *(value for _, value in items)))
        headers = {**message.headers, "Fleet-No-Wait": "1"}
        answer = await self._asking().ask("mput", payload, headers)
        return [_version(one) for one in _decode_versions(answer.payload)]


def _version(one: str | BatchError) -> str | Alone | RequestError:
    if isinstance(one, str):
        return one
    return ALONE if one.code in _ALONE_AFTER else RequestError(one.code, one.error)


def _settle(futures: Sequence[asyncio.Future[Any]], results: Sequence[object]) -> None:
    for future, result in zip(futures, results, strict=True):
        if future.done():  # nobody waits any more
            continue
        if isinstance(result, RequestError):
            future.set_exception(result)
        else:
            future.set_result(result)


def _fail(futures: Sequence[asyncio.Future[Any]], error: Exception) -> None:
    """Each has an error of its own: one that is raised twice tells of both places."""
    for future in futures:
        if not future.done():
            refusal = isinstance(error, RequestError) and RequestError(error.code, error.text)
            future.set_exception(refusal or error)
