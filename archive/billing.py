"""For whom a request to the store is made, so that each namespace and TTL class bears its own."""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar

import msgspec

from archive.index_entry import IndexEntry
from archive.lifecycle import FOREVER

Payer = tuple[str, str]
"""A namespace and a TTL class."""
UPKEEP = "upkeep"
"""In the place of a TTL class: what no value needs by itself, such as listings and trial writes."""
NOBODY: Payer = ("", UPKEEP)
MAX_BILL_CHARACTERS = 64 * 1024
"""A longer bill is told as one for nobody: it travels in a header."""

Bill = dict[Payer, dict[str, float]]
"""Requests by kind, for each payer. One that serves several is shared, so counts have fractions."""

_shares: ContextVar[Mapping[Payer, float]] = ContextVar("shares")
_decode_bill = msgspec.json.Decoder(list[tuple[str, str, dict[str, float]]]).decode


def payer_of(entry: IndexEntry) -> Payer:
    """Who bears what is done for this entry; an object of its own is in no class."""
    ttl_class, dash, _ = entry.segment.partition("-")
    return entry.namespace, ttl_class if dash else FOREVER


@contextlib.contextmanager
def made_for(entries: Iterable[IndexEntry]) -> Iterator[None]:
    """What is asked of the store within is asked for these, each an equal share.

    Tasks that are begun within are within, too.
    """
    payers = Counter(map(payer_of, entries))
    count = payers.total()
    before = _shares.set({payer: number / count for payer, number in payers.items()})
    try:
        yield
    finally:
        _shares.reset(before)


class Requests(Counter[str]):
    """How often a store was asked by this process, by kind; and what of it is not billed yet."""

    def __init__(self) -> None:
        super().__init__()
        self._unbilled: defaultdict[Payer, dict[str, float]] = defaultdict(dict)

    def made(self, kind: str) -> None:
        """Count a request, for whom `made_for` says."""
        self[kind] += 1
        for payer, share in (_shares.get({}) or {NOBODY: 1.0}).items():
            add_requests(self._unbilled[payer], {kind: share})

    def take(self) -> Bill:
        """What was made since this was asked last: whoever takes it sees that it is counted."""
        bill = dict(self._unbilled)
        self._unbilled.clear()
        return bill

    def give_back(self, bill: Bill) -> None:
        """It could not be counted: who asks next takes it."""
        for payer, requests in bill.items():
            add_requests(self._unbilled[payer], requests)


def add_requests(to: dict[str, float], more: Mapping[str, float]) -> None:
    """Add counts by kind to counts by kind."""
    for kind, count in more.items():
        to[kind] = to.get(kind, 0.0) + count


def encode_bill(bill: Bill) -> str:
    """A bill as one line."""
    text = msgspec.json.encode([(*payer, requests) for payer, requests in bill.items()]).decode()
    if len(text) <= MAX_BILL_CHARACTERS:
        return text
    whole: dict[str, float] = {}
    for requests in bill.values():
        add_requests(whole, requests)
    return encode_bill({NOBODY: whole})


def decode_bill(text: str) -> Bill:
    """What `encode_bill` gave.

    Raises:
        msgspec.MsgspecError: it did not give this.
    """
    bill: defaultdict[Payer, dict[str, float]] = defaultdict(dict)
    for namespace, ttl_class, requests in _decode_bill(text):
        add_requests(bill[namespace, ttl_class], requests)
    return dict(bill)
