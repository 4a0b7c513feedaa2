"""How many GPUs of a pool carry its replicas, and what one of them costs. Pure."""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence

from handlers.prices import PriceList, PriceRule
from handlers.spending.gpu_minutes import GpuMinute
from schemas.money import usd

MOST_TEXTS = 8
MOST_NAME = 80


@dataclasses.dataclass(frozen=True, slots=True)
class PricedGpus:
    """The GPUs of a pool in a minute, but for those that were truly idle and carry nothing."""

    end_ns: int
    """Of the minute."""
    gpus: int | None
    """How many carry a replica; None: what one of them does was not measured."""
    usd_per_gpu_hour: float | None
    """The mean of their list prices; None: one of them has none, or there are no GPUs."""
    sources: tuple[str, ...]
    """Models, prices and whose they are, for people."""


def priced_gpus(minutes: Sequence[GpuMinute], prices: PriceList, end_ns: int) -> PricedGpus:
    """What the GPUs of these minutes come to.

    6 H100 at 3.99 and 2 A100 at 2.79 → 3.69 USD a GPU-hour. Energy that has a price of its own
    is not in it.
    """
    carrying = [minute for minute in minutes if minute.state != "idle"]
    rules = [prices.find(one.name, one.key[0], one.pool, one.labels) for one in carrying]
    priced = Counter(
        (minute.name, rule)
        for minute, rule in zip(carrying, rules, strict=True)
        if rule is not None
    )
    usd = None
    if carrying and priced.total() == len(carrying):
        usd = math.fsum(rule.usd_per_gpu_hour * count for (_, rule), count in priced.items())
        usd /= len(carrying)
    is_known = all(minute.state is not None for minute in carrying)
    texts = sorted(_text(name, rule, count) for (name, rule), count in priced.items())
    if len(texts) > MOST_TEXTS:
        texts = [*texts[:MOST_TEXTS], f"and {len(texts) - MOST_TEXTS} others"]
    return PricedGpus(end_ns, len(carrying) if is_known else None, usd, tuple(texts))


def _text(name: str | None, rule: PriceRule, count: int) -> str:
    """`6 × NVIDIA H100 80GB HBM3 at $3.99 (Lambda, 8 GPUs with SXM, 2026-09-25)`."""
    whose = rule.source if rule.as_of is None else f"{rule.source}, {rule.as_of}"
    model = (name or "a GPU without a name")[:MOST_NAME]  # anybody may have written it
    return f"{count} × {model} at {usd(rule.usd_per_gpu_hour)} ({whose})"
