"""What a namespace uses of the store, and what that costs."""

import asyncio
from typing import Any

import msgspec
import pytest

from archive.billing import NOBODY, Requests, decode_bill, encode_bill, made_for
from archive.frame import FrameHeader
from archive.index_entry import IndexEntry
from archive.money import Meter, billed_as, price_table
from archive.settings import ArchiveSettings, PriceSettings
from schemas.archive_money import GIB
from schemas.units import instant
from tests.support.evictions import NOW_NS, ManualClock, evicted

PRICES = price_table(PriceSettings())
HOUR = 3600.0


def entry(segment: str = f"1d-{0:032x}", namespace: str = "a", **fields: Any) -> IndexEntry:
    manifest = evicted(namespace=namespace, **fields)
    header = FrameHeader(manifest=manifest, codec="raw", stored_at=instant(NOW_NS), payload_bytes=0)
    return IndexEntry.of(header, GIB, segment=segment)


def test_bytes_are_held_for_as_long_as_they_are_needed() -> None:
    clock, one = ManualClock(), entry()
    meter = Meter(clock)

    meter.count(one, 1)
    clock.advance(2 * HOUR)
    meter.count(entry(), 1)
    clock.advance(HOUR)
    meter.count(one, -1)
    clock.advance(HOUR)
    use = meter.uses("a")["1d"]

    assert use.held_byte_hours == pytest.approx((2 * 1 + 1 * 2 + 1 * 1) * GIB)
    assert (use.entries, use.held_bytes) == (1, GIB)


def test_an_index_that_is_read_anew_is_not_counted_twice() -> None:
    clock = ManualClock()
    meter = Meter(clock)
    meter.count(entry(), 1)
    clock.advance(HOUR)

    meter.forget_held()
    meter.count(entry(), 1)
    clock.advance(HOUR)
    use = meter.uses("a")["1d"]

    assert (use.entries, use.held_bytes) == (1, GIB)
    assert use.held_byte_hours == pytest.approx(2 * GIB)


def test_a_clock_that_goes_back_takes_nothing_away() -> None:
    clock = ManualClock()
    meter = Meter(clock)
    meter.count(entry(), 1)
    clock.advance(HOUR)
    before = meter.uses("a")["1d"].held_byte_hours

    clock.advance(-HOUR)

    assert meter.uses("a")["1d"].held_byte_hours == before


def test_use_is_told_by_namespace_and_class() -> None:
    meter = Meter(ManualClock())
    dear = entry(value=b"12345", cost_seconds=2.5)

    meter.stored(dear)
    meter.restored(dear)
    meter.restored(entry(f"none-{1:032x}", value=b"1"))
    meter.restored(entry("ab" * 32))
    meter.stored(entry(namespace="b"))
    uses = meter.uses("a")

    assert set(uses) == {"1d", "none"}
    assert (uses["1d"].stored_total, uses["1d"].stored_bytes_total) == (1, GIB)
    assert (uses["1d"].restored_total, uses["1d"].restored_bytes_total) == (1, 5)
    assert uses["1d"].avoided_seconds_total == 2.5
    assert uses["none"].restored_total == 2, "an object of its own is in no class"
    assert meter.uses("nobody") == {}


def test_a_gib_for_a_month_costs_what_the_table_says() -> None:
    clock = ManualClock()
    meter = Meter(clock)
    meter.count(entry(), 1)
    clock.advance(730 * HOUR)

    cost = meter.uses("a", PRICES)["1d"].cost

    assert cost is not None
    assert cost.storage_usd == pytest.approx(0.023)
    assert cost.total_usd == cost.storage_usd
    assert cost.prices == "AWS us-east-1, S3 Standard, 2026-03"


def test_requests_cost_what_the_table_says_by_their_kind() -> None:
    meter = Meter(ManualClock())
    meter.book({("a", "1d"): {"write": 1000, "read": 10_000, "list": 200, "delete": 10**9}})

    cost = meter.uses("a", PRICES)["1d"].cost

    assert cost is not None
    assert (cost.write_usd, cost.read_usd, cost.list_usd) == pytest.approx((0.005, 0.004, 0.001))
    assert cost.requests_usd == cost.total_usd == pytest.approx(0.01)


def test_without_prices_there_is_no_cost() -> None:
    meter = Meter(ManualClock())
    meter.count(entry(), 1)

    assert meter.uses("a")["1d"].cost is None


def test_a_request_for_several_entries_is_shared_by_who_they_are_of() -> None:
    requests = Requests()
    meter = Meter(ManualClock(), requests)
    other = entry(f"7d-{1:032x}", namespace="b")

    with made_for([entry(), entry(), entry(), other]):
        requests.made("write")
    with made_for([other]):
        requests.made("read")

    assert meter.uses("a")["1d"].requests == {"write": 0.75}
    assert meter.uses("b")["7d"].requests == {"write": 0.25, "read": 1.0}
    assert meter.requests == {"write": 1, "read": 1}


async def test_what_is_asked_beside_it_is_for_somebody_else() -> None:
    requests = Requests()
    meter = Meter(ManualClock(), requests)
    begun = asyncio.Event()

    async def fetch() -> None:
        await begun.wait()
        requests.made("read")

    with made_for([entry()]):
        task = asyncio.create_task(fetch())
    with made_for([entry(namespace="b")]):
        begun.set()
        await task

    assert meter.uses("a")["1d"].requests == {"read": 1.0}
    assert meter.uses("b") == {}


def test_upkeep_is_shared_by_the_bytes_held_and_waits_for_some() -> None:
    requests = Requests()
    meter = Meter(ManualClock(), requests)
    requests.made("list")
    assert meter.uses("a") == {}
    for _ in range(3):
        meter.count(entry(), 1)
    meter.count(entry(namespace="b"), 1)

    told = [meter.uses(name)["upkeep"].requests for name in "ab"]
    again = meter.uses("a")["upkeep"].requests

    assert told == [{"list": 0.75}, {"list": 0.25}]
    assert again == {"list": 0.75}
    assert meter.requests == {"list": 1}


def test_a_bill_travels_and_counts_once() -> None:
    here, there = Requests(), Meter(ManualClock())
    with made_for([entry()]):
        here.made("write")
    here.made("list")

    bill = here.take()
    here.give_back(bill)
    there.book(decode_bill(encode_bill(here.take())))

    assert here.take() == {}
    assert there.requests == {"write": 1, "list": 1}
    assert there.uses("a")["1d"].requests == {"write": 1.0}


def test_a_bill_of_too_many_is_told_as_one() -> None:
    bill = {(f"namespace-{n:060}", "1d"): {"write": 0.5} for n in range(2000)}

    assert decode_bill(encode_bill(bill)) == {NOBODY: {"write": pytest.approx(1000.0)}}


def test_what_restores_without_a_cost_avoided_is_not_known() -> None:
    meter = Meter(ManualClock())
    meter.restored(entry())
    unknown = meter.uses("a")["1d"]
    meter.restored(entry(cost_seconds=2.0))
    partly = meter.uses("a")["1d"]

    assert (unknown.restored_total, unknown.restored_without_cost_total) == (1, 1)
    assert unknown.avoided_seconds is None
    assert partly.avoided_seconds == 2.0


def test_a_clock_set_back_and_right_again_counts_no_hour_twice() -> None:
    clock = ManualClock()
    meter = Meter(clock)
    meter.count(entry(), 1)
    for seconds in (2 * HOUR, -24 * HOUR, HOUR, 23 * HOUR, HOUR):
        clock.advance(seconds)
        meter.uses("a")

    assert meter.uses("a")["1d"].held_byte_hours == 3 * GIB


@pytest.mark.parametrize(
    ("method", "url", "kind"),
    [
        ("PUT", "http://h/b/prefix/objects/1d-0", "write"),
        ("POST", "http://h/b/k?uploads", "write"),
        ("GET", "http://h/b/k", "read"),
        ("HEAD", "http://h/b/k", "read"),
        ("GET", "http://h/b?list-type=2&prefix=x", "list"),
        ("GET", "http://h/b?uploads&prefix=x", "list"),
        ("GET", "http://h/b?lifecycle", "read"),
        ("DELETE", "http://h/b/k", "delete"),
    ],
)
def test_requests_are_billed_by_their_kind(method: str, url: str, kind: str) -> None:
    assert billed_as(method, url) == kind


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({"store": "s3://bucket"}, True, id="AWS"),
        pytest.param({"store": "folder"}, False, id="folder"),
        pytest.param(
            {"store": "s3://bucket", "s3": {"endpoint_url": "http://h:1"}}, False, id="own server"
        ),
        pytest.param({"store": "folder", "prices": {"apply": "on"}}, True, id="wanted"),
        pytest.param({"store": "s3://bucket", "prices": {"apply": "off"}}, False, id="unwanted"),
    ],
)
def test_money_is_shown_where_the_prices_hold(settings: dict[str, Any], expected: bool) -> None:
    assert msgspec.convert(settings, ArchiveSettings).shows_money is expected
