"""What a namespace uses of the store, and what that costs."""

from typing import Any

import msgspec
import pytest

from archive.frame import FrameHeader
from archive.index_entry import IndexEntry
from archive.money import GIB, Meter, billed_as
from archive.settings import ArchiveSettings, PriceSettings
from schemas.units import instant
from tests.support.evictions import NOW_NS, ManualClock, evicted

PRICES = PriceSettings()
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

    cost = meter.cost("a", {}, PRICES)

    assert cost.storage_usd == pytest.approx(0.023)
    assert cost.total_usd == cost.storage_usd
    assert cost.prices == "AWS us-east-1, S3 Standard, 2026-03"


def test_requests_are_shared_by_what_was_stored_and_restored() -> None:
    meter = Meter(ManualClock())
    for _ in range(3):
        meter.stored(entry())
    meter.restored(entry(namespace="b"))
    requests = {"write": 1000, "read": 10_000, "list": 200, "delete": 10**9}
    all_usd = 0.005 + 0.004 + 0.001

    costs = [meter.cost(name, requests, PRICES).requests_usd for name in "abc"]

    assert costs == pytest.approx([0.75 * all_usd, 0.25 * all_usd, 0.0])


def test_before_anything_happened_nothing_costs() -> None:
    assert Meter(ManualClock()).cost("a", {"write": 5}, PRICES).total_usd == 0


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
