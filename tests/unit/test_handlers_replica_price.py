"""The price of a replica from the GPUs of its pool."""

import dataclasses

import msgspec
import pytest

from handlers.prices import PriceList, PriceRule, PriceSettings
from handlers.scaling.replica_price import FORGET_NS, DerivedPrice, ReplicaGpus
from handlers.spending.gpu_minutes import GpuMinute
from handlers.spending.gpu_prices import PricedGpus, priced_gpus
from schemas.analysis import GpuState
from schemas.units import SECOND_NS
from tests.support.fleets import H100

MINUTE_NS = 60 * SECOND_NS
A100 = "NVIDIA A100-SXM4-80GB"
H100_TEXT = "2 × NVIDIA H100 80GB HBM3 at $3.99 (Lambda, 8 GPUs with SXM, 2026-09-25)"


def minute(name: str | None = H100, state: GpuState | None = "active") -> GpuMinute:
    return GpuMinute(("n1", "g0"), name, "chat", False, state, 0.5, None, None)


def priced(*minutes: GpuMinute, settings: PriceSettings | None = None) -> PricedGpus:
    return priced_gpus(minutes, PriceList(settings or PriceSettings()), 60)


def test_gpus_cost_the_mean_of_their_list_prices() -> None:
    found = priced(minute(), minute(A100), minute(state="idle_held"))

    assert (found.end_ns, found.gpus) == (60, 3)
    assert found.usd_per_gpu_hour == pytest.approx((2 * 3.99 + 2.79) / 3)
    assert found.sources == (
        "1 × NVIDIA A100-SXM4-80GB at $2.79 (Lambda, 2026-09-20)",
        H100_TEXT,
    )


def test_a_replica_costs_its_gpus_by_the_mean_of_their_prices() -> None:
    found = priced(*[minute()] * 6, *[minute(A100)] * 2)
    seen = ReplicaGpus()
    for number in range(1, 6):
        seen.see(dataclasses.replace(found, end_ns=number * MINUTE_NS), 4)

    price = seen.price(None, 5 * MINUTE_NS)

    assert price is not None
    assert price.usd_per_hour == pytest.approx(7.38)


def test_a_gpu_that_carries_nothing_does_not_count() -> None:
    assert priced(minute(), minute(), minute(A100, "idle")) == priced(minute(), minute())
    assert priced(minute(state="idle")) == PricedGpus(60, 0, None, ())


@pytest.mark.parametrize("name", [None, "AMD Instinct MI300X"])
def test_one_gpu_without_a_price_leaves_the_price_unknown(name: str | None) -> None:
    assert priced(minute(), minute(name)).usd_per_gpu_hour is None


def test_a_gpu_whose_state_is_not_known_leaves_their_number_unknown() -> None:
    found = priced(minute(), minute(state=None))

    assert (found.gpus, found.usd_per_gpu_hour) == (None, 3.99)


def test_your_price_counts_and_is_named() -> None:
    rule = PriceRule(pool="chat", usd_per_gpu_hour=2.5, source="contract")

    found = priced(minute(), settings=PriceSettings(rules=(rule,)))

    assert found == PricedGpus(60, 1, 2.5, (f"1 × {H100} at $2.50 (contract)",))


def test_the_labels_of_the_node_count() -> None:
    rule = PriceRule(labels={"capacity": "spot"}, usd_per_gpu_hour=1.5, source="contract")
    spot = msgspec.structs.replace(minute(), labels=(("capacity", "spot"),))

    found = priced(spot, minute(), settings=PriceSettings(rules=(rule,)))

    assert found.usd_per_gpu_hour == pytest.approx((1.5 + 3.99) / 2)


def test_only_the_first_models_are_named() -> None:
    found = priced(*(minute(f"H100 of kind {number}") for number in range(11)))

    assert len(found.sources) == 9
    assert found.sources[-1] == "and 3 others"
    (text,) = priced(minute("H100 " + 1000 * "x")).sources
    assert len(text) < 160


class Seen:
    """The minutes of a pool, one after the other."""

    def __init__(self) -> None:
        self.gpus = ReplicaGpus()
        self.minute = 0

    def see(
        self, gpus: int | None, replicas: int, times: int = 1, usd: float | None = 3.0
    ) -> "Seen":
        for _ in range(times):
            self.minute += 1
            found = PricedGpus(self.minute * MINUTE_NS, gpus, usd, ("list",))
            self.gpus.see(found, replicas)
        return self

    def number(self, given: int | None = None, after_ns: int = 0) -> int | None:
        price = self.gpus.price(given, self.minute * MINUTE_NS + after_ns)
        return None if price is None else price.gpus


def test_gpus_by_replicas_count_once_they_were_steady() -> None:
    seen = Seen().see(8, 4, times=4)
    assert seen.number() is None

    seen.see(8, 4)

    price = seen.gpus.price(None, seen.minute * MINUTE_NS)
    assert price == DerivedPrice(2, False, 3.0, ["list"])
    assert price.usd_per_hour == 6.0


@pytest.mark.parametrize(
    ("gpus", "replicas"),
    [
        pytest.param(9, 4, id="no whole number"),
        pytest.param(3, 4, id="fewer than replicas"),
        pytest.param(0, 4, id="none carries anything"),
        pytest.param(None, 4, id="not known what each does"),
    ],
)
def test_no_whole_number_is_no_number(gpus: int | None, replicas: int) -> None:
    assert Seen().see(gpus, replicas, times=10).number() is None


def test_another_number_in_between_starts_anew() -> None:
    assert Seen().see(8, 4, times=4).see(4, 4).see(8, 4, times=4).number() is None


def test_a_minute_that_is_missing_starts_anew() -> None:
    seen = Seen().see(8, 4, times=4)
    seen.minute += 1

    assert seen.see(8, 4, times=4).number() is None
    assert seen.see(8, 4).number() == 2


def test_a_replica_that_starts_changes_nothing() -> None:
    seen = Seen().see(8, 4, times=5).see(10, 4, times=3)

    assert seen.number() == 2
    assert seen.see(10, 5).number() == 2


def test_a_number_that_comes_back_now_and_then_is_not_forgotten() -> None:
    seen = Seen().see(8, 4, times=5)
    for _ in range(10):
        seen.see(9, 4, times=2).see(8, 4)

    assert seen.see(9, 4).number() == 2


def test_a_number_that_stays_takes_the_place_of_the_old_one() -> None:
    assert Seen().see(8, 4, times=5).see(4, 4, times=5).number() == 1


def test_what_was_not_seen_for_a_while_is_forgotten() -> None:
    seen = Seen().see(8, 4, times=5)

    assert seen.number(after_ns=FORGET_NS) == 2
    assert seen.number(after_ns=FORGET_NS + 1) is None
    assert seen.see(9, 4, times=15).number() == 2
    assert seen.see(9, 4).number() is None


def test_a_price_that_ends_is_not_known_at_once() -> None:
    assert Seen().see(8, 4, times=5).see(8, 4, usd=None).number() is None


def test_a_number_that_was_given_needs_none_that_was_seen() -> None:
    seen = Seen().see(9, 4)

    assert seen.gpus.price(8, seen.minute * MINUTE_NS) == DerivedPrice(8, True, 3.0, ["list"])
    assert seen.number(8, after_ns=FORGET_NS + 1) is None
    assert ReplicaGpus().price(8, 0) is None
