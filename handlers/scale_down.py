"""Whether fewer replicas are advised: they must survive a failure, and be worth it. Pure."""

import dataclasses

from handlers.demand import Demand
from handlers.settings import ScalingSettings
from schemas.scaling import HeldReason


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """The fewer replicas that the load asks for, and why they are not advised."""

    target: int
    reason: HeldReason
    text: str


def scale_down(
    settings: ScalingSettings, replicas: int, asked: int, demand: Demand, downs: int
) -> int | Held:
    """The target to advise, at least `asked` and below `replicas`, or why there is none.

    Simulated are the replicas left with `failures_survived` of them lost: they must carry the
    demand within the targets. Where `asked` would not, the next higher count that does is taken.
    What needs no replica at all may be left to one without a spare. `downs`: how often the pool
    was scaled down in the last hour.
    """
    if not demand.is_known:
        text = "requests are expected, but nothing runs now and no replica tells how many it can"
        return Held(asked, "unknown", text)
    needed = demand.replicas
    target = max(asked, needed + settings.failures_survived if needed else 1)
    if target >= replicas:
        return Held(asked, "failure", _too_few(settings, asked, needed, demand))
    if reason := _too_little(settings, replicas - target, replicas):
        return Held(target, "saving", reason)
    if downs >= settings.downs_per_hour_max:
        return Held(target, "churn", f"it was scaled down {downs} times within the last hour")
    return target


def expectation(demand: Demand) -> str:
    """Of what load is spoken, for people."""
    if demand.expected is None:
        return "the load of now"
    expected = demand.expected
    return f"{expected.p90:.0f} requests in flight (p90 of the next {expected.ahead_seconds:g} s)"


def _too_few(settings: ScalingSettings, asked: int, needed: int, demand: Demand) -> str:
    return (
        f"{expectation(demand)} needs {needed} replicas within the targets, and "
        f"{settings.failures_survived} more to survive as many failures: {asked} are too few"
    )


def _too_little(settings: ScalingSettings, removed: int, replicas: int) -> str:
    """Why it is not worth it; empty: it is, or what it saves is not known."""
    price = settings.usd_per_replica_hour
    if removed < settings.least_saving_ratio * replicas:
        return f"{removed} of {replicas} replicas are less than {settings.least_saving_ratio:.0%}"
    if price is not None and removed * price < settings.least_saving_usd_per_hour:
        least = settings.least_saving_usd_per_hour
        return f"it saves {removed * price:.2f} USD an hour, less than {least:.2f}"
    return ""
