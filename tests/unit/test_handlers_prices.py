import itertools
import random
import re
from fnmatch import fnmatchcase
from typing import Any

import msgspec
import pytest

from handlers.prices import BUILT_IN, PriceList, PriceRule, PriceSettings
from schemas.labels import frozen


@pytest.mark.parametrize(
    ("name", "usd"),
    [
        ("NVIDIA H100 80GB HBM3", 3.99),
        ("NVIDIA H100 PCIe", 2.89),
        ("NVIDIA H100 NVL", 3.19),
        ("NVIDIA H200", 5.00),
        ("NVIDIA GH200 480GB", None),  # not an H200
        ("NVIDIA B200", 6.69),
        ("NVIDIA GB200", None),
        ("NVIDIA B300 SXM6 AC", 7.50),
        ("NVIDIA A100-SXM4-80GB", 2.79),
        ("NVIDIA A100-PCIE-40GB", 1.99),
        ("NVIDIA L40S", 1.40),
        ("NVIDIA L4", 0.80),
        ("NVIDIA A10G", 1.01),
        ("NVIDIA A10", None),
        ("Tesla T4", 0.53),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 1.75),
        ("AMD Instinct MI300X", None),
        (None, None),
    ],
)
def test_built_in_prices_are_found_by_the_drivers_names(
    name: str | None, usd: float | None
) -> None:
    rule = PriceList(PriceSettings()).find(name, "n1", None, ())

    assert (rule.usd_per_gpu_hour if rule else None) == usd


def test_every_built_in_price_names_its_source_and_day() -> None:
    assert all(rule.source != "settings" for rule in BUILT_IN)
    undated = [rule.gpu for rule in BUILT_IN if rule.as_of is None]
    assert undated == [r"\bL4\b", r"\bA10G\b", r"\bT4\b"]
    assert all(re.fullmatch(r"\d{4}-\d{2}-\d{2}", rule.as_of) for rule in BUILT_IN if rule.as_of)


@pytest.mark.parametrize(
    ("name", "node", "pool", "usd"),
    [
        pytest.param("NVIDIA H100 PCIe", "spot-7", "chat", 1.5, id="by node"),
        pytest.param("NVIDIA H100 PCIe", "n1", "batch-eu", 1.8, id="by pool"),
        pytest.param("NVIDIA H100 PCIe", "n1", None, 2.5, id="in no pool only by `*`"),
        pytest.param("AMD Instinct MI300X", "n1", "chat", 3.0, id="by model"),
        pytest.param(None, "n1", "chat", None, id="without a name no model matches"),
        pytest.param(None, "spot-1", "chat", 1.5, id="a node's price needs no name"),
    ],
)
def test_the_first_rule_of_the_settings_that_matches_counts(
    name: str | None, node: str, pool: str | None, usd: float | None
) -> None:
    prices = PriceList(
        PriceSettings(
            rules=(
                PriceRule(node="spot-*", usd_per_gpu_hour=1.5),
                PriceRule(pool="batch-*", usd_per_gpu_hour=1.8),
                PriceRule(gpu="mi300x", usd_per_gpu_hour=3.0),
                PriceRule(gpu="h100", usd_per_gpu_hour=2.5),
            )
        )
    )

    rule = prices.find(name, node, pool, ())

    assert (rule.usd_per_gpu_hour if rule else None) == usd


@pytest.mark.parametrize(
    ("labels", "usd"),
    [
        pytest.param({"capacity": "spot", "zone": "eu-1a"}, 1.2, id="all of a rule's labels"),
        pytest.param({"zone": "us-1", "capacity": "spot"}, 1.5, id="the next rule asks for one"),
        pytest.param({"zone": "eu-1a"}, 2.89, id="one is missing"),
        pytest.param({"capacity": "Spot"}, 2.89, id="letters count"),
        pytest.param({}, 2.89, id="no labels"),
    ],
)
def test_a_price_may_go_by_the_labels_of_the_node(labels: dict[str, str], usd: float) -> None:
    prices = PriceList(
        PriceSettings(
            rules=(
                PriceRule(labels={"capacity": "spot", "zone": "eu-*"}, usd_per_gpu_hour=1.2),
                PriceRule(labels={"capacity": "spot"}, usd_per_gpu_hour=1.5),
            )
        )
    )

    rule = prices.find("NVIDIA H100 PCIe", "n1", None, frozen(labels))

    assert rule is not None
    assert rule.usd_per_gpu_hour == usd


def test_without_the_built_in_prices_only_the_settings_count() -> None:
    assert PriceList(PriceSettings(built_in=False)).find("NVIDIA H100 PCIe", "n1", None, ()) is None


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        pytest.param({"gpu": "(", "usd_per_gpu_hour": 1}, "no regular expression", id="pattern"),
        pytest.param({"usd_per_gpu_hour": 1, "as_of": "2026-02-30"}, "2026-02-30 is no", id="day"),
        pytest.param({"gpu": "x", "usd_per_gpu_hour": -1}, ">= 0", id="negative"),
        pytest.param({"gpu": "x"}, "usd_per_gpu_hour", id="no price"),
        pytest.param({"usd_per_gpu_hour": 1, "as_of": "May"}, "as_of", id="no day"),
        pytest.param({"usd_per_gpu_hour": 1, "label": "a"}, "label", id="unknown key"),
        pytest.param({"usd_per_gpu_hour": 1, "labels": {"a b": "*"}}, "regex", id="label's name"),
    ],
)
def test_a_rule_that_cannot_be_right_is_refused(rule: dict[str, object], text: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=text):
        msgspec.convert({"rules": [rule]}, PriceSettings)


@pytest.mark.parametrize(
    ("rule", "differs"),
    [
        pytest.param({"node": "spot-*"}, True, id="by node"),
        pytest.param({"gpu": "H100", "pool": "chat"}, True, id="by pool"),
        pytest.param({"labels": {"capacity": "spot"}}, True, id="by label"),
        pytest.param({"gpu": "H100"}, False, id="one for the model"),
        pytest.param({"gpu": "A100", "node": "n1"}, False, id="of another model"),
    ],
)
def test_a_price_that_goes_by_more_than_the_model_is_known_to(
    rule: dict[str, Any], differs: bool
) -> None:
    prices = PriceList(PriceSettings(rules=(PriceRule(**rule, usd_per_gpu_hour=1.0),)))

    assert prices.differs("NVIDIA H100 80GB HBM3") is differs


@pytest.mark.parametrize("seed", range(10))
def test_the_price_is_that_of_the_first_rule_that_matches_each_of_its_patterns(seed: int) -> None:
    rng = random.Random(seed)
    names: tuple[str | None, ...] = ("NVIDIA A", "NVIDIA B", None)
    nodes, pools, values = ("n1", "n2", "m1"), ("p", "q", None), ("a", "ab", "")
    rules = tuple(
        PriceRule(
            gpu=rng.choice(("", "", "a$", "b$")),
            node=rng.choice(("*", "*", "n*", "?1", "m1")),
            pool=rng.choice(("*", "*", "p", "[q]")),
            labels=rng.choice(({}, {}, {"x": "a*"}, {"x": "*", "y": "a"})),
            usd_per_gpu_hour=number,
        )
        for number in range(rng.randrange(1, 12))
    )
    prices = PriceList(PriceSettings(rules=rules, built_in=False))

    def is_of(rule: PriceRule, gpu: str | None, node: str, pool: str | None) -> bool:
        is_model = not rule.gpu or (gpu is not None and re.search(rule.gpu, gpu, re.IGNORECASE))
        is_pool = rule.pool == "*" or (pool is not None and fnmatchcase(pool, rule.pool))
        has_labels = all(
            name in labels and fnmatchcase(labels[name], value)
            for name, value in rule.labels.items()
        )
        return bool(is_model and fnmatchcase(node, rule.node) and is_pool and has_labels)

    for gpu, node, pool in itertools.product(names, nodes, pools):
        for x, y in itertools.product((None, *values), (None, *values)):
            labels = {name: one for name, one in (("x", x), ("y", y)) if one is not None}
            first = next((rule for rule in rules if is_of(rule, gpu, node, pool)), None)
            found = prices.find(gpu, node, pool, frozen({**labels, "z": node}))
            assert found == first


def test_places_that_differ_in_nothing_that_rules_ask_for_are_looked_up_once() -> None:
    rules = (PriceRule(pool="batch", usd_per_gpu_hour=1.0), PriceRule(usd_per_gpu_hour=2.0))
    prices = PriceList(PriceSettings(rules=rules))

    for number in range(100):
        prices.find("NVIDIA H100 PCIe", f"n{number}", "chat", frozen({"rack": f"{number}"}))

    assert prices._known.cache_info().misses == 1
