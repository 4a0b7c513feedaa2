"""The archive's part of a report: what is known, what is not, and what it says of that."""

from typing import Any

import msgspec
import pytest

from agent.cli.report import rendered
from agent.views import report_tables
from handlers.spending.archive_report import NO_POOL, archive_notes, archive_report, gpu_hour_usd
from schemas.archive_money import (
    GIB,
    NOTHING_USED,
    ArchivePrices,
    ArchiveUsage,
    ArchiveUse,
    cost_of,
)
from schemas.report import ReportArchive
from schemas.spending import Usage
from schemas.units import SECOND_NS, instant
from tests.support.reports import day_of_usages, fleet, made

HOUR_NS = 3600 * SECOND_NS
START_NS = 1_800_000_000 * SECOND_NS
PRICES = ArchivePrices(
    source="ours",
    as_of="2026-11",
    gib_month_usd=730.0,
    write_usd_per_1000=5.0,
    list_usd_per_1000=6.0,
    read_usd_per_1000=0.4,
)
GPUS = {"chat": day_of_usages()}
"""At 4 USD a GPU-hour."""


def use(prices: ArchivePrices | None = PRICES, **fields: Any) -> ArchiveUse:
    found = msgspec.structs.replace(NOTHING_USED, **fields)
    return found if prices is None else msgspec.structs.replace(found, cost=cost_of(found, prices))


def hour(
    classes: dict[str, ArchiveUse],
    number: int = 0,
    *,
    namespace: str = "chat",
    prices: ArchivePrices | None = PRICES,
    minutes: int = 60,
) -> ArchiveUsage:
    return ArchiveUsage(
        namespace=namespace,
        hour_at=instant(START_NS + number * HOUR_NS),
        minutes=minutes,
        classes=classes,
        prices=prices,
    )


def told(
    *hours: ArchiveUsage,
    pools: dict[str, list[Usage]] | None = None,
    chosen: dict[str, str] | None = None,
    only_pool: str | None = None,
    span_hours: int = 2,
) -> ReportArchive:
    by_name: dict[str, list[ArchiveUsage]] = {}
    for one in hours:
        by_name.setdefault(one.namespace, []).append(one)
    found = archive_report(
        by_name,
        GPUS if pools is None else pools,
        chosen or {},
        only_pool=only_pool,
        span_ns=span_hours * HOUR_NS,
    )
    assert found is not None
    return found


RESTORED: dict[str, Any] = {"restored_total": 2, "avoided_seconds_total": 7200.0}


def test_a_class_of_which_the_last_hour_says_nothing_is_not_held_any_more() -> None:
    both = {"1d": use(entries=3, held_bytes=GIB, held_byte_hours=1.0 * GIB), "7d": use(entries=2)}

    found = told(hour(both), hour({"7d": use(entries=4, held_bytes=5)}, 1))

    (one,) = found.namespaces
    gone, held = one.classes["1d"].use, one.classes["7d"].use
    assert (gone.entries, gone.held_bytes, gone.held_byte_hours) == (0, 0, GIB)
    assert (held.entries, held.held_bytes) == (4, 5)
    assert one.total.use.held_bytes == 5


def test_a_namespace_that_is_silent_while_others_are_told_holds_nothing() -> None:
    big = {"1d": use(entries=3, held_bytes=GIB, **RESTORED)}

    found = told(
        hour(big), hour(big, namespace="code"), hour(big, 1, namespace="code"), span_hours=3
    )

    by_name = {one.namespace: one.classes["1d"].use for one in found.namespaces}
    assert (by_name["chat"].held_bytes, by_name["code"].held_bytes) == (0, GIB)
    assert by_name["chat"].restored_total == 2


def test_of_an_archive_that_is_silent_as_a_whole_the_last_sizes_stand() -> None:
    big = {"1d": use(entries=3, held_bytes=GIB)}

    found = told(hour(big), span_hours=24)

    assert found.total.use.held_bytes == GIB


def test_hours_add_up_and_sizes_are_the_last_ones() -> None:
    early = use(held_bytes=GIB, held_byte_hours=1.0 * GIB, requests={"write": 1000.0}, **RESTORED)
    late = use(held_bytes=3 * GIB, held_byte_hours=3.0 * GIB, requests={"read": 500.0})

    found = told(hour({"1d": early}), hour({"1d": late}, 1))

    (one,) = found.namespaces
    figures = one.classes["1d"]
    assert figures.use.held_bytes == 3 * GIB
    assert figures.use.held_byte_hours == 4 * GIB
    assert figures.use.requests == {"write": 1000.0, "read": 500.0}
    assert figures.use.cost is not None
    # 4 GiB-hours at 1 USD, 1,000 writes at 5 and 500 reads at 0.4 a thousand.
    assert figures.use.cost.total_usd == pytest.approx(4 + 5 + 0.2)
    assert figures.avoided_usd == pytest.approx(8.0)
    assert figures.net_usd == pytest.approx(8.0 - 9.2)
    assert found.measured_ratio == 1.0
    assert found.prices == [PRICES]


def test_the_sum_is_that_of_the_classes_and_namespaces() -> None:
    found = told(
        hour(
            {
                "1d": use(held_byte_hours=1.0 * GIB, **RESTORED),
                "upkeep": use(requests={"list": 1000.0}),
            }
        ),
        hour({"none": use(held_byte_hours=2.0 * GIB)}, namespace="b"),
    )

    costs = [one.total.use.cost for one in found.namespaces]
    assert [cost.total_usd for cost in costs if cost is not None] == pytest.approx([7.0, 2.0])
    assert found.total.use.cost is not None
    assert found.total.use.cost.total_usd == pytest.approx(9.0)
    assert found.total.net_usd == pytest.approx(8.0 - 9.0)


def test_without_prices_of_the_store_there_is_no_cost_and_no_net() -> None:
    found = told(hour({"1d": use(None, **RESTORED)}, prices=None))

    assert found.total.use.cost is None
    assert found.total.avoided_usd == pytest.approx(8.0)
    assert found.total.net_usd is None
    assert found.prices == []
    assert any("no price is known of the archive's store" in note for note in archive_notes(found))


@pytest.mark.parametrize(
    ("pools", "chosen", "pool"),
    [
        pytest.param({"chat": []}, {}, "chat", id="same name, no GPU-hour"),
        pytest.param({"a": [], "b": []}, {}, None, id="several pools"),
        pytest.param({}, {}, None, id="no pool"),
    ],
)
def test_without_a_price_of_its_gpus_nothing_is_known_to_be_saved(
    pools: dict[str, list[Usage]], chosen: dict[str, str], pool: str | None
) -> None:
    found = told(hour({"1d": use(**RESTORED), "7d": use()}), pools=pools, chosen=chosen)

    (one,) = found.namespaces
    assert one.pool == pool
    assert one.classes["1d"].avoided_seconds == 7200
    assert (one.classes["1d"].avoided_usd, one.classes["1d"].net_usd) == (None, None)
    assert one.classes["7d"].avoided_usd == 0, "no second avoided costs nothing at any price"
    assert found.total.avoided_usd is None
    assert any("no price is known of the GPUs that compute chat" in n for n in archive_notes(found))


@pytest.mark.parametrize(
    ("namespace", "chosen"),
    [("default", {"default": "chat"}), ("chat", {}), ("default", {})],
    ids=["chosen", "same name", "only pool"],
)
def test_the_pool_is_the_chosen_one_that_of_the_name_or_the_only_one(
    namespace: str, chosen: dict[str, str]
) -> None:
    pools = dict(GPUS) if not chosen and namespace == "default" else {**GPUS, "batch": []}

    found = told(hour({"1d": use(**RESTORED)}, namespace=namespace), pools=pools, chosen=chosen)

    assert found.namespaces[0].pool == "chat"
    assert found.total.avoided_usd == pytest.approx(8.0)


def test_in_a_fleet_without_pools_all_gpus_compute() -> None:
    found = told(hour({"1d": use(**RESTORED)}), pools={NO_POOL: GPUS["chat"]})

    (one,) = found.namespaces
    assert (one.pool, one.usd_per_gpu_hour) == (None, 4.0)
    assert found.total.avoided_usd == pytest.approx(8.0)
    assert any("$4.00 a GPU-hour of the fleet" in note for note in archive_notes(found))


def test_one_namespace_that_is_not_known_makes_the_sum_unknown() -> None:
    found = told(
        hour({"1d": use(**RESTORED)}),
        hour({"1d": use(**RESTORED)}, namespace="b"),
        pools={**GPUS, "batch": []},
    )

    assert [one.total.avoided_usd for one in found.namespaces] == [pytest.approx(8.0), None]
    assert (found.total.avoided_seconds, found.total.avoided_usd) == (14400, None)
    assert found.total.net_usd is None


def test_restores_without_a_cost_avoided_nobody_knows_what() -> None:
    found = told(hour({"1d": use(restored_total=3, restored_without_cost_total=3)}))

    assert (found.total.avoided_seconds, found.total.avoided_usd) == (None, None)
    assert any("3 of 3 restored values did not say" in note for note in archive_notes(found))


def test_prices_that_changed_are_both_named_and_each_hour_has_its_own() -> None:
    dearer = msgspec.structs.replace(PRICES, gib_month_usd=1460.0, as_of="2026-12")
    held: dict[str, Any] = {"held_byte_hours": float(GIB)}

    found = told(hour({"1d": use(**held)}), hour({"1d": use(dearer, **held)}, 1, prices=dearer))

    assert found.prices == [PRICES, dearer]
    cost = found.total.use.cost
    assert cost is not None
    assert cost.total_usd == pytest.approx(3.0)
    assert cost.prices == "ours, 2026-11; ours, 2026-12"


def test_a_report_of_a_pool_has_the_namespaces_that_it_computes() -> None:
    hours = [hour({"1d": use(**RESTORED)}, namespace=name) for name in ("chat", "a", "b")]

    found = told(*hours, chosen={"a": "chat", "b": "batch"}, only_pool="chat")

    assert [one.namespace for one in found.namespaces] == ["chat", "a"]
    assert archive_report({"b": hours[2:]}, GPUS, {}, only_pool="chat", span_ns=HOUR_NS) is None


def test_hours_in_which_nothing_was_heard_are_told() -> None:
    found = told(hour({"1d": use()}, minutes=30), span_hours=2)

    assert found.measured_ratio == 0.25
    assert any("heard of in 25% of the period" in note for note in archive_notes(found))


def test_a_gpu_hour_has_no_price_where_one_of_the_gpus_has_none() -> None:
    assert gpu_hour_usd(GPUS["chat"]) == pytest.approx(4.0)
    unpriced = [msgspec.structs.replace(one, unpriced_gpu_hours=0.1) for one in GPUS["chat"]]
    assert gpu_hour_usd(unpriced) is None
    assert gpu_hour_usd([]) is None


def shown(found: ReportArchive) -> dict[str, list[list[str]]]:
    report = msgspec.structs.replace(made(fleet), archive=found)
    return {
        table.title: [list(row) for row in table.rows]
        for table in report_tables.tables(report)
        if table.title.startswith("The archive")
    }


def test_the_tables_say_what_is_known_and_a_dash_else() -> None:
    asked = {"write": 2.5, "read": 12.0}
    restored = use(held_bytes=GIB, held_byte_hours=0.5 * GIB, requests=asked, **RESTORED)
    tables = shown(
        told(
            hour(
                {
                    "1d": restored,
                    "7d": use(restored_total=1, restored_without_cost_total=1),
                    "upkeep": use(requests={"list": 3.0}),
                }
            )
        )
    )

    did, cost = tables.values()
    assert did[0][1:] == ["1d", "1.0 GiB", "512.0 MiB h", "0", "2", "2.5", "12", "0", "0", "2.0 h"]
    assert did[1][-1] == "-"
    assert did[2][1:] == ["upkeep", "", "", "", "", "0", "0", "3", "0", ""]
    assert did[3][0] == "all"
    assert cost[0][1:] == ["1d", "$0.50", "$0.013", "$0.0048", "$0", "$0.52", "$8.00", "+$7.48"]
    assert cost[1][-2:] == ["-", "-"]
    assert cost[2][-3:] == ["$0.018", "$0", "-$0.018"]


def test_a_folder_makes_no_requests_and_has_no_price() -> None:
    did, cost = shown(told(hour({"1d": use(None, held_bytes=GIB)}, prices=None))).values()

    assert len(did) == 1, "a sum of one row says nothing"
    assert did[0][6:10] == ["-"] * 4
    assert cost[0][2:7] == ["-"] * 5
    assert cost[0][-1] == "-"


@pytest.mark.parametrize("form", ["text", "markdown", "html", "json"])
def test_every_form_of_the_report_has_the_archive(form: Any) -> None:
    found = told(hour({"1d": use(held_byte_hours=float(GIB), **RESTORED)}))
    report = msgspec.structs.replace(made(fleet), archive=found, notes=archive_notes(found))

    text = rendered(report, form)

    assert ("avoided_usd" if form == "json" else "+$7.00") in text
    assert "ours" in text
    assert "2026-11" in text
