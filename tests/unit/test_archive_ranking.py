"""Which value is worth least: against the formula, over random ages and scores."""

import random

from archive.frame import FrameHeader
from archive.index import NamespaceIndex
from archive.index_entry import IndexEntry
from schemas.cache import Evicted
from schemas.units import SECOND_NS, instant
from schemas.worth import equal_idle_seconds, worth
from tests.support.evictions import NOW_NS, evicted, tombstone


def entry(key: str, score: float, idle_seconds: float) -> IndexEntry:
    return IndexEntry(
        namespace="default",
        key=key,
        generation=0,
        version="b1-01",
        tombstone=False,
        segment="s",
        first=0,
        size_bytes=1,
        object_bytes=1,
        stored_ns=NOW_NS,
        expires_ns=None,
        hash=b"",
        tags=(),
        tag=None,
        follows=False,
        cost_seconds=None,
        score=score,
        used_ns=NOW_NS - int(idle_seconds * SECOND_NS),
    )


def header(manifest: Evicted) -> FrameHeader:
    return FrameHeader(manifest=manifest, codec="raw", stored_at=instant(NOW_NS), payload_bytes=0)


def test_worth_has_its_worked_values() -> None:
    assert round(worth(1, 0), 4) == round(worth(1, -9), 4) == 0.0894
    assert worth(1, 95) == 0.001
    assert round(worth(2.83, 195), 5) == 0.001
    assert [round(equal_idle_seconds(score, 95)) for score in (1, 2.83, 0.125, 0)] == [
        95,
        195,
        20,
        0,
    ]


def test_the_least_worthy_leave_first() -> None:
    chance = random.Random(7)
    entries = {
        str(n): entry(str(n), 2 ** chance.uniform(-6, 6), chance.uniform(0, 5000))
        for n in range(500)
    }
    index = NamespaceIndex(budget_bytes=100)
    for known in entries.values():
        index.put(known)

    dropped = []
    while (least := index.excess(NOW_NS)) is not None:
        index.remove(least)
        dropped.append(least)

    def its_worth(known: IndexEntry) -> float:
        return worth(known.score, (NOW_NS - known.used_ns) / SECOND_NS)

    assert len(dropped) == 400
    kept = [its_worth(known) for key, known in entries.items() if index.newest(key)]
    assert max(map(its_worth, dropped)) < min(kept) * 2**0.25  # scores of a class differ so far


def test_a_value_read_again_stays_and_one_handed_out_goes() -> None:
    index = NamespaceIndex(budget_bytes=2)
    old, used, handed = (entry(key, 1, 100) for key in ("old", "used", "handed"))
    for known in (old, used, handed):
        index.put(known)

    index.use(used, 1.0, NOW_NS)
    index.hand_out(handed)

    first = index.excess(NOW_NS)
    assert first is not None
    assert first.key == "handed"
    index.remove(first)
    assert index.excess(NOW_NS) is None
    index.put(entry("new", 1, 0))
    second = index.excess(NOW_NS)
    assert second is not None
    assert second.key == "old"


def test_what_left_is_forgotten() -> None:
    index = NamespaceIndex(budget_bytes=10)
    for number in range(20_000):
        known = entry(str(number % 5), 1, number % 7)
        index.remove(index.newest(known.key) or known)
        index.put(known)

    assert index._ranking._held < 2000


def test_scores_of_a_manifest_are_limited_and_tombstones_are_not_dropped() -> None:
    def made(score: float | None) -> float:
        return IndexEntry.of(header(evicted(score=score)), 1).score

    index = NamespaceIndex(budget_bytes=1)
    index.put(IndexEntry.of(header(tombstone()), 1000))
    index.put(entry("value", 1, 0))

    assert [made(score) for score in (None, 0.0, -1.0, 1e300, 3.0)] == [
        1.0,
        2.0**-20,
        2.0**-20,
        2.0**20,
        3.0,
    ]
    assert index.excess(NOW_NS) is None
