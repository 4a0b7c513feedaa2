"""Which message of a stream is the next on a subject, whatever it looks like."""

from datetime import datetime

import msgspec

from agent.bus.client import BusClient
from schemas.protocols import PublishError
from schemas.units import to_ns

ANSWER_SECONDS = 5.0
NO_MESSAGE = 10037
"""The server's own number of that error: with 404 it answers for other things, too."""


class _Message(msgspec.Struct):
    """Its headers and payload, which may be anything, are not looked at."""

    seq: int
    time: str


class _Error(msgspec.Struct):
    err_code: int = 0
    description: str = ""


class _Found(msgspec.Struct):
    message: _Message | None = None
    error: _Error | None = None


async def first_from(
    client: BusClient, stream: str, subject: str, sequence: int
) -> tuple[int, int] | None:
    """Sequence and time (ns) of the first message from `sequence` on; None: there is none.

    The server sends the whole message. Raises PublishError where it refuses, and what the client
    raises.
    """
    question = msgspec.json.encode({"seq": sequence, "next_by_subj": subject})
    answer = await client.ask(f"$JS.API.STREAM.MSG.GET.{stream}", question, {}, ANSWER_SECONDS)
    found = msgspec.json.decode(answer.payload, type=_Found)
    if found.error is not None and found.error.err_code != NO_MESSAGE:
        raise PublishError(f"stream {stream}: {found.error.description}")
    if found.message is None:
        return None
    return found.message.seq, _ns(found.message.time)


def _ns(text: str) -> int:
    """Nanoseconds of an instant as Go writes it: datetime would round to microseconds."""
    seconds, _, fraction = text.removesuffix("Z").partition(".")
    return to_ns(datetime.fromisoformat(f"{seconds}+00:00")) + int(fraction.ljust(9, "0"))
