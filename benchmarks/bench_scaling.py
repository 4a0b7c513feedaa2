"""What our scaling policy costs on public loads, against HPA at the same share of short minutes.

`python -m benchmarks.bench_scaling --data DIR`: `azure2024` from minute 300, and days 4 to 9 of
the services `m_large` and `m_small` of `servegen` (days 0 to 3 warm up), at start-up leads of 3
and 10 minutes, risk 1 %, one setting for all. A replica serves a seventh of the mean load. HPA's
target is the cheapest of 0.30 to 1.10 with at most our share of short minutes, in hindsight.

`--others` runs the loads of `other_loads.py` instead, which no target names.
`--failures N` prints instead what the orders cost when a pool is scaled down only as far as live
advice would be: to what carries the p90 of the forecasts, filled to the full, with N replicas lost.
"""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.other_loads import DAY, SERVICES, other_loads
from benchmarks.traces import Trace, servegen_minutes
from handlers.backtest import Outcome, backtest
from handlers.backtest.run import Load, cheapest, every_target
from handlers.forecasting import Forecaster
from handlers.forecasting.forecaster import LEAST_MATURED

SIX_DAYS = 6 * DAY
REPLICAS = 7
AZURE = Trace("azure2024", "azure2024/conv_requests_1min.csv.gz", "requests", 60.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the public traces")
    parser.add_argument("--seeds", type=int, nargs="*", default=[7], help="of the drawn minutes")
    parser.add_argument("--leads", type=int, nargs="*", default=[3, 10], help="in minutes")
    parser.add_argument("--replicas", type=float, default=REPLICAS, help="that carry the mean load")
    parser.add_argument("--failures", type=int, help="replicas that live advice may lose")
    parser.add_argument("--others", action="store_true", help="loads that no target names")
    options = parser.parse_args()
    loads = other_loads(options.data) if options.others else targeted(options.data, options.seeds)
    head = "| series | lead | cost, to carry p90 | short | changes/h |\n" + "|---" * 5 + "|"
    print(
        head
        if options.failures is not None
        else "| series | lead | cost | short | worst six days | HPA, same short | by HPA's | "
        "changes/h | by HPA's | oracle, same lead |\n" + "|---" * 10 + "|"
    )
    seconds, steps = 0.0, 0
    for name, demand, start in loads:
        for lead in options.leads:
            load = Load(
                demand=demand,
                capacity=fmean(demand[start:]) / options.replicas,
                step_seconds=60.0,
                lead_seconds=60.0 * lead,
                warmup_steps=start,
            )
            begun = time.process_time()
            ours = backtest("ours", load)
            seconds += time.process_time() - begun
            steps += len(demand)
            if options.failures is not None:
                kept = load.score(held_back(load, ours.orders, options.failures))
                print(
                    f"| {name} | {lead} | {ours.score.cost_ratio:.3f} → {kept.cost_ratio:.3f} | "
                    f"{kept.short_ratio:.2%} | {kept.changes_per_hour:.1f} |",
                    flush=True,
                )
                continue
            rival = cheapest(every_target("hpa", load), ours.score.short_ratio)
            print(row(name, lead, load, ours, rival), flush=True)
    print(f"\n{seconds / steps * 1e3:.2f} ms of CPU a step")


def targeted(data: Path, seeds: Sequence[int]) -> Iterator[tuple[str, list[float], int]]:
    """The loads of the targets: name, minutes, and how many of these warm up."""
    yield "azure2024", AZURE.read(data), 300
    for service in SERVICES:
        for seed in seeds:
            name = service if len(seeds) == 1 else f"{service}, seed {seed}"
            yield name, servegen_minutes(data, service, seed), 4 * DAY


def row(name: str, lead: int, load: Load, ours: Outcome, rival: Outcome | None) -> str:
    done = ours.score
    six_days = worst_six_days(load, ours.orders)
    foreseen = backtest("oracle", load).score
    against = ("-", "-", "-")
    if rival is not None:
        theirs = rival.score
        against = (
            f"{theirs.cost_ratio:.3f}",
            f"{done.cost_ratio / theirs.cost_ratio:.3f}",
            f"{done.changes_per_hour / theirs.changes_per_hour:.2f}",
        )
    return (
        f"| {name} | {lead} | {done.cost_ratio:.3f} | {done.short_ratio:.2%} | {six_days:.2%} | "
        f"{against[0]} | {against[1]} | {done.changes_per_hour:.1f} | {against[2]} | "
        f"{foreseen.cost_ratio:.3f} |"
    )


def held_back(load: Load, orders: Sequence[int], failures: int) -> list[int]:
    """The replicas there are when orders down are followed only as far as the forecasts let them.

    Forecasts of 3 and 15 minutes, as live; before they are calibrated the load of now counts.
    """
    forecaster = Forecaster.make((3, 15), (DAY,))
    replicas, there = orders[0], []
    for order, demand in zip(orders, load.demand, strict=True):
        forecaster.update(demand)
        expected = [one.p90 for one in forecaster.estimates() if one.scored >= LEAST_MATURED]
        needed = math.ceil(max([demand or 0.0, *expected]) / load.capacity) + failures
        replicas = max(order, min(replicas, needed))
        there.append(replicas)
    return there


def worst_six_days(load: Load, orders: Sequence[int]) -> float:
    """The share of short minutes of the worst six days on end after the first day."""
    later = Load(
        demand=load.demand,
        capacity=load.capacity,
        step_seconds=load.step_seconds,
        lead_seconds=load.lead_seconds,
        warmup_steps=min(DAY, load.warmup_steps),
    )
    short = set(later.score(orders).short_steps)
    first, end = later.warmup_steps, len(load.demand)
    width = min(SIX_DAYS, end - first)
    count = most = sum(step in short for step in range(first, first + width))
    for step in range(first + width, end):
        count += (step in short) - (step - width in short)
        most = max(most, count)
    return most / width


if __name__ == "__main__":
    main()
