"""Whether fewer replicas are advised: they must survive a failure, and be worth it. Pure."""

import dataclasses
from typing import Literal, TypeAlias

from handlers.scaling.cache_loss import CacheLoss, Caches
from handlers.scaling.demand import Demand
from handlers.settings import ScalingSettings
from schemas.money import usd
from schemas.scaling import HeldReason

Direction: TypeAlias = Literal["scale_up", "scale_down"]
DOWN: Direction = "scale_down"


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """A change that the load asks for, and why it is not advised."""

    action: Direction
    target: int
    reason: HeldReason
    text: str


def scale_down(
    settings: ScalingSettings, demand: Demand, caches: Caches, asked: int, downs: int
) -> int | Held:
    """The target to advise, at least `asked`, which is below what there is; or why there is none.

    Simulated are the replicas left with `failures_survived` of them lost: they must carry the
    demand within the limits. Where `asked` would not, the next higher count that does is taken.
    What needs no replica at all may be left to one without a spare. `downs`: how often the pool
    was scaled down in the last hour.
    """
    if demand.unknown:
        return Held(DOWN, asked, "unknown", demand.unknown)
    target = max(asked, fewest_safe(settings, demand))
    if target >= demand.replicas:
        return Held(DOWN, asked, "failure", _too_few(settings, asked, demand))
    removed = demand.replicas - target
    if reason := _too_little(settings, removed, demand.replicas):
        return Held(DOWN, target, "saving", reason)
    if downs >= settings.downs_per_hour_max:
        return Held(DOWN, target, "churn", f"it was scaled down {downs} times within the last hour")
    loss = caches.loss(removed)
    payback = payback_hours(loss, removed)
    if payback is not None and payback > settings.payback_max_hours:
        most = f"{settings.payback_max_hours:g} h"
        text = f"{loss_text(settings, loss, removed)} The most is {most}."
        return Held(DOWN, target, "payback", text)
    return target


def fewest_safe(settings: ScalingSettings, demand: Demand) -> int:
    """The fewest replicas of which `failures_survived` may be lost; 1 where there is no load."""
    needed = demand.needed
    return needed + settings.failures_survived if needed else 1


def payback_hours(loss: CacheLoss, removed: int) -> float | None:
    """Until what is saved makes up for the loss, whatever a replica costs; None: not known."""
    return None if loss.replica_hours is None else loss.replica_hours / removed


def one_off_usd(settings: ScalingSettings, loss: CacheLoss) -> float | None:
    """The price of the replica-hours that the loss takes; None: they or the price is not known."""
    price = settings.usd_per_replica_hour
    return None if price is None or loss.replica_hours is None else price * loss.replica_hours


def loss_text(settings: ScalingSettings, loss: CacheLoss, removed: int) -> str:
    """What has to be computed anew, for people."""
    if loss.tokens is None or loss.replica_hours is None:
        return f"What is lost with their KV caches is not known: {loss.unknown} is not measured."
    cost = one_off_usd(settings, loss)
    money = "" if cost is None else f" ({usd(cost)})"
    return (
        f"At most {loss.tokens:,.0f} tokens of KV cache have to be computed anew: "
        f"{loss.replica_hours * 3600:.1f} s of one replica{money}, made up for in "
        f"{loss.replica_hours * 3600 / removed:.1f} s."
    )


def expectation(demand: Demand) -> str:
    """Of what load is spoken, for people."""
    if demand.expected is None:
        return "the load of now"
    expected = demand.expected
    return f"{expected.p90:.0f} requests in flight (p90 of the next {expected.ahead_seconds:g} s)"


def _too_few(settings: ScalingSettings, asked: int, demand: Demand) -> str:
    limits = "filled to the full" if demand.is_planned else "within the targets"
    return (
        f"{expectation(demand)} needs {demand.needed} replicas {limits}, and "
        f"{settings.failures_survived} more to survive as many failures: {asked} are too few"
    )


def _too_little(settings: ScalingSettings, removed: int, replicas: int) -> str:
    """Why it is not worth it; empty: it is, or what it saves is not known."""
    price = settings.usd_per_replica_hour
    if removed < settings.least_saving_ratio * replicas:
        return f"{removed} of {replicas} replicas are less than {settings.least_saving_ratio:.0%}"
    if price is not None and removed * price < settings.least_saving_usd_per_hour:
        least = settings.least_saving_usd_per_hour
        return f"it saves {usd(removed * price)} an hour, less than {usd(least)}"
    return ""
