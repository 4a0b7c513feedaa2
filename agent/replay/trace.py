"""KV traces: requests as chains of block ids, read from JSON lines or made up."""

import gzip
import itertools
import math
import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from schemas.message import UNDECODABLE

MAX_SHOWN_BAD = 20
_SHORT_BLOCKS, _MEDIUM_BLOCKS = 8, 32
_GZIP_MAGIC = b"\x1f\x8b"

Block = str | int


class TraceRequest(msgspec.Struct, frozen=True):
    """One request of a trace: when, since its start, and its blocks, root first."""

    at_seconds: float
    blocks: tuple[str, ...]
    request_class: str


class Trace(msgspec.Struct, frozen=True):
    """The requests in time order, and what could not be read.

    `bad` names up to 20 bad lines by number and reason; `bad_total` counts them all.
    """

    name: str
    requests: list[TraceRequest]
    bad: list[tuple[int, str]] = []
    bad_total: int = 0


class _Line(msgspec.Struct, frozen=True):
    """What Mooncake's traces and those like them say of a request; other fields are skipped."""

    timestamp: Annotated[float, msgspec.Meta(ge=0, description="milliseconds")]
    hash_ids: list[Block]
    request_class: str | None = msgspec.field(name="class", default=None)
    type: str | None = None


class TraceError(Exception):
    """The file is no trace; the text names it and says what is wrong."""


def read_trace(path: Path) -> Trace:
    """A trace of JSON lines with `timestamp` (ms) and `hash_ids`; gzip is recognised.

    Mooncake's published traces have this form. A field `class` (or `type`) names the class of a
    request; else the length of its chain does.

    Raises:
        OSError: the file cannot be read.
        TraceError: not one line is a request.
    """
    requests: list[TraceRequest] = []
    bad: list[tuple[int, str]] = []
    bad_total = 0
    decoder = msgspec.json.Decoder(_Line)
    try:
        for number, line in enumerate(_lines(path), start=1):
            if not line.strip():
                continue
            try:
                requests.append(_request(decoder.decode(line)))
            except (ValueError, *UNDECODABLE) as error:
                bad_total += 1
                if len(bad) < MAX_SHOWN_BAD:
                    bad.append((number, str(error)))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TraceError(f"{path}: damaged gzip file: {error}") from error
    if not requests:
        first = f"; line {bad[0][0]}: {bad[0][1]}" if bad else ""
        raise TraceError(f"{path}: no request in it{first}")
    requests.sort(key=lambda request: request.at_seconds)
    return Trace(path.name, requests, bad, bad_total)


def synthetic_sessions(sessions: int = 40, seed: int = 1) -> Trace:
    """Chat sessions that share system prompts and grow by some blocks each turn.

    5 system prompts of 4 to 12 blocks; a session has 2 to 12 turns, 20 s apart on average, each
    with 1 to 6 new blocks; sessions begin 2 s apart on average. The same for the same seed.
    """
    rng = random.Random(seed)  # noqa: S311 - a made-up load
    prompts = [[f"s{p}.{n}" for n in range(rng.randint(4, 12))] for p in range(5)]
    requests, begins = [], 0.0
    for session in range(sessions):
        begins += rng.expovariate(1 / 2)
        at, numbers = begins, itertools.count()
        chain = list(rng.choice(prompts))
        for _turn in range(rng.randint(2, 12)):
            chain += [f"u{session}.{next(numbers)}" for _ in range(rng.randint(1, 6))]
            requests.append(TraceRequest(at, tuple(chain), length_class(len(chain))))
            at += rng.expovariate(1 / 20)
    requests.sort(key=lambda request: request.at_seconds)
    return Trace(f"synthetic sessions (seed {seed})", requests)


def length_class(blocks: int) -> str:
    """The class of a request whose trace names none."""
    if blocks <= _SHORT_BLOCKS:
        return f"up_to_{_SHORT_BLOCKS}_blocks"
    return f"up_to_{_MEDIUM_BLOCKS}_blocks" if blocks <= _MEDIUM_BLOCKS else "longer"


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as opened:
        packed = opened.read(2) == _GZIP_MAGIC
    with gzip.open(path, "rb") if packed else path.open("rb") as opened:
        yield from opened


def _request(line: _Line) -> TraceRequest:
    if not math.isfinite(line.timestamp):
        raise ValueError("timestamp is not finite")
    if not line.hash_ids:
        raise ValueError("hash_ids is empty")
    named = line.request_class or line.type
    return TraceRequest(
        line.timestamp / 1000,
        tuple(map(str, line.hash_ids)),
        named or length_class(len(line.hash_ids)),
    )
