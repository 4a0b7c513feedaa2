"""What could be saved, from minutes of GPUs: idle, held, under-used, or badly spread. Pure."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from handlers.prices import PriceList
from handlers.settings import WasteSettings
from handlers.spending.gpu_minutes import GpuMinute
from handlers.spending.trend import DAY_HOURS, Point
from handlers.spending.usage import MONTH_HOURS, total
from handlers.utilization.gpu_state import PartKey
from schemas.spending import Saving

MAX_PARTS = 16
SATURATED_RATIO = 0.9
IDLE_BESIDE_RATIO = 0.5
"""Others this little used beside a saturated GPU are room for its work."""
EFFORTS: dict[Literal["low", "medium", "high"], int] = {"low": 1, "medium": 2, "high": 4}


class Streaks(msgspec.Struct, array_like=True):
    """For how many minutes on end each GPU has been idle or held, and work badly spread."""

    resting: dict[str, tuple[Literal["idle", "idle_held"], int]] = {}
    unbalanced: int = 0

    def add(self, minutes: Sequence[GpuMinute]) -> None:
        """Take the next minute; a GPU that was not measured in it begins anew."""
        resting: dict[str, tuple[Literal["idle", "idle_held"], int]] = {}
        for minute in minutes:
            if minute.state in ("idle", "idle_held"):
                name = part_name(minute.key)
                before, count = self.resting.get(name, (minute.state, 0))
                resting[name] = (minute.state, count + 1 if before == minute.state else 1)
        self.resting = resting
        self.unbalanced = self.unbalanced + 1 if saturated(minutes)[0] else 0


def part_name(key: PartKey) -> str:
    """`<node>-<gpu>`, as bottlenecks name them."""
    return f"{key[0]}-{key[1]}"


def saturated(minutes: Sequence[GpuMinute]) -> tuple[list[GpuMinute], list[float]]:
    """GPUs at 0.9 and more beside others whose mean is below 0.5, and the use of those others.

    None where work is spread, or little: 0.95 beside 0.1, 0.1 → that one; 0.95 beside 0.6 → none.
    """
    full: list[GpuMinute] = []
    others: list[float] = []
    for minute in minutes:
        ratio = minute.utilization_ratio
        if ratio is None:
            continue
        if ratio >= SATURATED_RATIO:
            full.append(minute)
        else:
            others.append(ratio)
    if not full or not others or sum(others) / len(others) >= IDLE_BESIDE_RATIO:
        return [], []
    return full, others


def savings(
    minutes: Sequence[GpuMinute],
    streaks: Streaks,
    points: Sequence[Point],
    prices: PriceList,
    settings: WasteSettings,
) -> list[Saving]:
    """All that is worth doing after this minute, the highest score first.

    `points` are the hours so far. A GPU counts in one of them at most: idle, held, or, while it
    works, in the share by which all that work fall short of the target.
    """
    found = [
        *_resting(minutes, streaks, prices, settings),
        _under_used(minutes, points, prices, settings),
        _rebalance(minutes, streaks, settings),
    ]
    kept = [
        one
        for one in found
        if one is not None
        and (
            one.saving_usd_per_hour is None
            or one.saving_usd_per_hour >= settings.least_saving_usd_per_hour
        )
    ]
    return sorted(kept, key=lambda one: (-(one.score or 0.0), one.kind))


def _resting(
    minutes: Sequence[GpuMinute], streaks: Streaks, prices: PriceList, settings: WasteSettings
) -> list[Saving]:
    found = []
    for kind, state, effort, what, how in (
        ("release_idle", "idle", "low", "idle", "nothing runs there and no memory is held"),
        ("unload_held", "idle_held", "medium", "idle but held", "memory is held, nothing runs"),
    ):
        long: list[tuple[GpuMinute, int]] = []
        for minute in minutes:
            resting, count = streaks.resting.get(part_name(minute.key), (None, 0))
            if resting == state and count >= settings.idle_minutes:
                long.append((minute, count))
        if not long:
            continue
        parts = [part_name(minute.key) for minute, _ in long]
        shortest = min(count for _, count in long)
        found.append(
            _saving(
                kind,
                f"{'Release' if state == 'idle' else 'Unload or share'} {_gpus(len(long))}: {how}.",
                len(long),
                parts,
                [_price(minute, prices) for minute, _ in long],
                effort,
                [f"{_gpus(len(long))} {what} for {_duration(shortest)} and more"],
            )
        )
    return found


def _under_used(
    minutes: Sequence[GpuMinute],
    points: Sequence[Point],
    prices: PriceList,
    settings: WasteSettings,
) -> Saving | None:
    """By the busiest hour of the last day, so that what is left can carry that as well."""
    active = [minute for minute in minutes if minute.state == "active"]
    day = [one for one in points if one.hour > points[-1].hour - DAY_HOURS]
    if len(active) < 2 or len(day) < DAY_HOURS:
        return None
    spare = min(one.spare_gpus for one in day)
    count = min(int(spare), len(active) - 1)
    if count < 1:
        return None
    known = [price for minute in active if (price := _price(minute, prices)) is not None]
    mean = sum(known) / len(known) if known else None
    return _saving(
        "pack_under_used",
        f"Pack the work of {_gpus(len(active))} onto {len(active) - count}: even in the busiest "
        f"hour of the day they stay below {settings.target_ratio:.0%}.",
        count,
        [],
        [mean] * count,
        "high",
        [
            f"{spare:.1f} GPUs too many in the busiest of the last {DAY_HOURS} hours",
            f"{_gpus(len(active))} active now",
        ],
    )


def _rebalance(
    minutes: Sequence[GpuMinute], streaks: Streaks, settings: WasteSettings
) -> Saving | None:
    full, others = saturated(minutes)
    if not full or streaks.unbalanced < settings.unbalanced_minutes:
        return None
    mean = sum(others) / len(others)
    return _saving(
        "rebalance",
        f"Spread the work of {_gpus(len(full))} that {'is' if len(full) == 1 else 'are'} full "
        f"over {_gpus(len(others))} that have room.",
        len(full),
        [part_name(minute.key) for minute in full],
        [],
        "medium",
        [
            f"utilization {min(m.utilization_ratio or 0.0 for m in full):.0%} and more beside a "
            f"mean of {mean:.0%}",
            f"for {_duration(streaks.unbalanced)}",
        ],
    )


def _saving(
    kind: str,
    text: str,
    gpus: int,
    parts: list[str],
    prices: list[float | None],
    effort: str,
    evidence: list[str],
) -> Saving:
    hourly = total(prices)
    monthly = None if hourly is None else hourly * MONTH_HOURS
    if prices and None in prices:
        evidence = [*evidence, f"{_gpus(prices.count(None))} without a price, not counted"]
    return Saving(
        kind=kind,  # type: ignore[arg-type]  # one of the literals
        text=text,
        gpus=gpus,
        parts=parts[:MAX_PARTS],
        saving_usd_per_hour=hourly,
        saving_usd_per_month=monthly,
        effort=effort,  # type: ignore[arg-type]  # one of the literals
        score=None if monthly is None else monthly / EFFORTS[effort],  # type: ignore[index]
        evidence=evidence,
    )


def _price(minute: GpuMinute, prices: PriceList) -> float | None:
    rule = prices.find(minute.name, minute.key[0], minute.pool, minute.labels)
    return None if rule is None else rule.usd_per_gpu_hour


def _duration(minutes: int) -> str:
    """`52 minutes`, `2.5 hours`, `10.6 days`."""
    if minutes < 120:
        return f"{minutes} minutes"
    return f"{minutes / 60:.1f} hours" if minutes < 2880 else f"{minutes / 1440:.1f} days"


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"
