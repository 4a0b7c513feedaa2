"""The ledger by which `chaos_archive` judges what is read."""

import pytest

from benchmarks import chaos_archive
from benchmarks.chaos_ledger import UNANSWERED_SECONDS, Kind, Ledger, Write
from schemas.digest import digest_of

LATER = 1000.0


def put(
    ledger: Ledger, value: bytes, began: float, *, key: str = "k", tag: str = "", **life: float
) -> Write:
    """One that is answered a second after it began, and evicted."""
    write = ledger.begin("put", began, key=key, tag=tag)
    ledger.holds(write, value, **life)
    ledger.acknowledge(write, began + 1)
    assert ledger.evict(key, digest_of(value), LATER) is None
    return write


def erase(ledger: Ledger, kind: Kind, began: float, *, answered: bool = True) -> None:
    key, tag = ("k", "") if kind in ("put", "delete") else ("", "t")
    write = ledger.begin(kind, began, key=key, tag=tag)
    (ledger.acknowledge if answered else ledger.give_up)(write, began + 1)


ERASING: list[Kind] = ["put", "delete", "delete tag", "clear"]


@pytest.mark.parametrize("kind", ERASING)
def test_what_was_erased_must_not_be_read_by_who_asks_later(kind: Kind) -> None:
    ledger = Ledger()
    put(ledger, b"old", 0, tag="t")
    erase(ledger, kind, 5)

    said = ledger.judge("k", b"old", 6.5, "the cache")

    assert said is not None
    assert f"#2 {kind}" in said
    assert list(ledger.required(7)) == []


@pytest.mark.parametrize("kind", ERASING)
def test_what_may_have_been_erased_may_be_read_or_not(kind: Kind) -> None:
    ledger = Ledger()
    put(ledger, b"old", 0, tag="t")
    erase(ledger, kind, 5, answered=False)

    assert ledger.judge("k", b"old", 50, "the cache") is None
    assert list(ledger.required(50)) == []


@pytest.mark.parametrize(
    ("began", "is_wrong"), [(5.9, False), (6.1, True)], ids=["asked before", "asked after"]
)
def test_who_asked_before_the_answer_may_read_the_old_value(began: float, is_wrong: bool) -> None:
    ledger = Ledger()
    put(ledger, b"old", 0)
    erase(ledger, "delete", 5)

    assert (ledger.judge("k", b"old", began, "the cache") is not None) == is_wrong


def test_what_may_have_been_replaced_is_not_required_once_its_successor_is_deleted() -> None:
    ledger = Ledger()
    unanswered = ledger.begin("put", 0, key="k")
    ledger.holds(unanswered, b"old")
    ledger.give_up(unanswered, 1)
    ledger.evict("k", digest_of(b"old"), LATER)
    put(ledger, b"new", 2, tag="t")

    erase(ledger, "delete tag", 5)

    assert list(ledger.required(50)) == []


def test_of_two_puts_at_the_same_time_either_may_be_there_and_none_must() -> None:
    ledger = Ledger()
    put(ledger, b"one", 0)
    put(ledger, b"other", 0.5)

    assert ledger.judge("k", b"one", 9, "the cache") is None
    assert ledger.judge("k", b"other", 9, "the cache") is None
    assert list(ledger.required(9)) == []


@pytest.mark.parametrize(
    ("seconds", "erased"),
    [(UNANSWERED_SECONDS, False), (UNANSWERED_SECONDS + 2, True)],
    ids=["may still come", "is over"],
)
def test_a_put_without_an_answer_may_be_done_for_a_while(seconds: float, erased: bool) -> None:
    ledger = Ledger()
    write = ledger.begin("put", 0, key="k")
    ledger.holds(write, b"old")
    ledger.give_up(write, 1)
    erase(ledger, "delete", seconds)

    assert (ledger.judge("k", b"old", LATER, "the archive") is not None) == erased


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [("k", b"half", "nobody put"), ("other", b"whole", "another key")],
    ids=["damaged", "misplaced"],
)
def test_bytes_that_were_not_put_there_are_told(key: str, value: bytes, what: str) -> None:
    ledger = Ledger()
    put(ledger, b"whole", 0)

    assert what in (ledger.judge(key, value, 5, "the cache") or "")
    assert ledger.evict(key, digest_of(value), LATER) is not None


def test_a_value_is_over_when_it_has_lived_its_time() -> None:
    ledger = Ledger()
    put(ledger, b"short", 0, ttl_seconds=10)

    assert ledger.judge("k", b"short", 10.9, "the cache") is None
    assert ledger.judge("k", b"short", 11.1, "the cache") is not None


def test_an_acknowledged_eviction_is_required_until_its_expiry_others_are_not() -> None:
    ledger = Ledger()
    kept = put(ledger, b"evicted", 0)
    in_ram = ledger.begin("put", 5, key="other")
    ledger.holds(in_ram, b"in RAM")
    ledger.acknowledge(in_ram, 6)

    assert list(ledger.required(LATER - 1)) == [kept]
    assert list(ledger.required(LATER)) == []
    assert str(kept) in ledger.lost(kept)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--cycles", "0"), "--cycles 0: at least 1"),
        (("--rclone", "/no/such/rclone"), "--s3 folder needs no server"),
    ],
    ids=["no cycle", "no server"],
)
def test_a_run_that_cannot_be_is_refused_with_what_can(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["chaos_archive", *arguments])

    with pytest.raises(SystemExit, match="2"):
        chaos_archive.main()

    assert said in capsys.readouterr().err
