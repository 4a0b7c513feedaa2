"""Back-tests scaling policies on a recorded load: which rows, and what is written of them."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from agent.series_file import SeriesFile
from agent.views.charts import Axis, Series, line_chart
from agent.views.page import page, table
from handlers.backtest import Outcome, backtest
from handlers.backtest.fleet import start_replicas
from handlers.backtest.run import DAY_SECONDS, POLICIES, Load, Policy, cheapest, every_target

Choice: TypeAlias = Literal["ours", "hpa", "keda", "oracle", "all"]
RIVALS: tuple[Policy, ...] = ("hpa", "keda")
MAX_POINTS = 480
COLUMNS = ("policy", "cost", "minutes short", "unserved", "changes/h", "replica-hours")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A policy, and what its orders came to; ratios are shares, cost is by the oracle's."""

    policy: str
    is_hindsight: bool
    target_ratio: float | None
    cost_ratio: float
    short_ratio: float
    unserved_ratio: float
    changes_per_hour: float
    replica_hours: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A back-test, as `--json` prints it."""

    series: str
    steps: int
    warmup_steps: int
    step_seconds: float
    capacity: float
    lead_seconds: float
    risk_ratio: float
    rows: list[Row]


class Backtest:
    """The policies that were asked for on one load; with `all` also HPA and KEDA in hindsight.

    In hindsight: the cheapest target with at most our share of short steps. Nobody can choose it
    beforehand; it is the strongest rival there is.
    """

    def __init__(
        self,
        name: str,
        load: Load,
        choice: Choice,
        *,
        risk_ratio: float,
        target_ratio: float,
        max_replicas: int,
    ) -> None:
        self.name, self.load, self.risk_ratio = name, load, risk_ratio
        self.outcomes: list[Outcome] = []
        self.hindsight: list[Outcome] = []
        self.tried: dict[Policy, list[Outcome]] = {}
        self._policies: tuple[Policy, ...] = POLICIES if choice == "all" else (choice,)
        self._compares = choice == "all"
        self._target_ratio, self._max_replicas = target_ratio, max_replicas

    @property
    def total_steps(self) -> int:
        """Calls of `on_step` that `run` will make."""
        return len(self.load.demand) * sum(policy != "oracle" for policy in self._policies)

    def run(self, on_step: Callable[[int], None] = lambda step: None) -> None:
        """Run all policies."""
        self.outcomes = [
            backtest(
                policy,
                self.load,
                risk_ratio=self.risk_ratio,
                target_ratio=self._target_ratio,
                max_replicas=self._max_replicas,
                on_step=on_step,
            )
            for policy in self._policies
        ]
        if self._compares:
            allowed = self.outcomes[0].score.short_ratio
            self.tried = {
                policy: every_target(policy, self.load, max_replicas=self._max_replicas)
                for policy in RIVALS
            }
            found = (cheapest(outcomes, allowed) for outcomes in self.tried.values())
            self.hindsight = [outcome for outcome in found if outcome is not None]

    @property
    def result(self) -> Result:
        """What it came to."""
        load = self.load
        rows = [_row(outcome, is_hindsight=False) for outcome in self.outcomes]
        rows += [_row(outcome, is_hindsight=True) for outcome in self.hindsight]
        return Result(
            series=self.name,
            steps=len(load.demand),
            warmup_steps=load.warmup_steps,
            step_seconds=load.step_seconds,
            capacity=load.capacity,
            lead_seconds=load.lead_seconds,
            risk_ratio=self.risk_ratio,
            rows=rows,
        )


def default_warmup(steps: int, step_seconds: float) -> int:
    """A day, or a fifth of a series shorter than five days: for a day of minutes, 288."""
    return min(round(DAY_SECONDS / step_seconds), steps // 5)


def label(row: Row) -> str:
    """`ours`, `hpa at 0.70`, `hpa at 0.82, hindsight`."""
    target = "" if row.target_ratio is None else f" at {row.target_ratio:.2f}"
    return row.policy + target + (", hindsight" if row.is_hindsight else "")


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, in the order of `COLUMNS`."""
    return (
        label(row),
        f"{row.cost_ratio:.3f}",
        f"{row.short_ratio:.2%}",
        f"{row.unserved_ratio:.3%}",
        f"{row.changes_per_hour:.1f}",
        f"{row.replica_hours:,.0f}",
    )


def write_decisions(test: Backtest, series: SeriesFile, path: Path) -> None:
    """One row for each input row, warm-up included: the order made after that step."""
    with path.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(("t", "demand", "replicas_wanted"))
        writer.writerows(
            zip(series.times, map(_number, series.values), test.outcomes[0].orders, strict=True)
        )


def write_html(test: Backtest, path: Path) -> None:
    """One page that needs nothing else: the table, and charts of load, orders and risk."""
    result, load = test.result, test.load
    subtitle = (
        f"{_length(load, len(load.demand) - load.warmup_steps)} scored after "
        f"{_length(load, load.warmup_steps)} of warm-up; a replica serves {load.capacity:g} per "
        f"step of {load.step_seconds:g} s and starts within {load.lead_seconds:g} s; "
        f"at most {result.risk_ratio:.2%} of the steps may be short"
    )
    notes = (
        "Cost is by an oracle that has just enough replicas in every step without having to "
        "start them; the policy oracle knows the load to come, but waits for replicas to start. "
        "Hindsight: the cheapest target that keeps the same share of short steps, chosen on "
        "these very data, as nobody can.",
    )
    tables = [table(COLUMNS, map(cells, result.rows))]
    path.write_text(page(f"Back-test of {test.name}", subtitle, tables, _charts(test), notes))


def _row(outcome: Outcome, *, is_hindsight: bool) -> Row:
    score = outcome.score
    return Row(
        policy=outcome.policy,
        is_hindsight=is_hindsight,
        target_ratio=outcome.target_ratio,
        cost_ratio=score.cost_ratio,
        short_ratio=score.short_ratio,
        unserved_ratio=score.unserved_ratio,
        changes_per_hour=score.changes_per_hour,
        replica_hours=score.replica_hours,
    )


def _charts(test: Backtest) -> Iterator[str]:
    load, shown = test.load, test.outcomes[0]
    time = Axis(_unit(load)[0])
    steps = range(load.warmup_steps, len(load.demand))
    yield line_chart(
        f"Load and the replicas ready for it ({shown.policy})",
        _load_and_ready(load, shown, steps),
        time,
        Axis("replicas"),
    )
    day = load.day_steps
    if shown.score.short_steps and len(steps) > day:  # else it is the whole
        worst = max(
            range(steps.start, steps.stop, day),
            key=lambda at: sum(at <= step < at + day for step in shown.score.short_steps),
        )
        yield line_chart(
            "The day with the most short steps",
            _load_and_ready(load, shown, range(worst, min(worst + day, steps.stop))),
            time,
            Axis("replicas"),
        )
    if test.tried:
        yield line_chart(
            "Cost by share of short steps: each target of HPA and KEDA, and ours",
            _curves(test),
            Axis("short steps", text="{:.1%}".format),
            Axis("cost above the oracle's", text="{:.0%}".format),
        )
    yield line_chart(
        "Short steps since the start, and how many may be",
        _short_so_far(test),
        time,
        Axis("steps"),
    )


def _load_and_ready(load: Load, outcome: Outcome, steps: range) -> list[Series]:
    """The highest load and the fewest replicas of each stretch: no peak is hidden."""
    ready = _ready(load, outcome)
    stretches = [
        range(at, min(at + width, steps.stop))
        for width in [-(-len(steps) // MAX_POINTS)]
        for at in range(steps.start, steps.stop, width)
    ]
    highest: list[tuple[float, float | None]] = []
    for stretch in stretches:
        known = [demand for i in stretch if (demand := load.demand[i]) is not None]
        highest.append((_at(load, stretch.start), max(known) / load.capacity if known else None))
    return [
        Series("load / capacity", highest),
        Series(
            "replicas ready", [(_at(load, s.start), min(ready[i] for i in s)) for s in stretches]
        ),
    ]


def _ready(load: Load, outcome: Outcome) -> list[int]:
    """The replicas ready in each step, from the orders before it."""
    start, lead = load.warmup_steps, load.lead_steps
    first = start_replicas(load.demand, load.capacity, start)
    orders = [first] * (start + lead + 1) + outcome.orders[start:]
    return [min(orders[step : step + lead + 1]) for step in range(len(load.demand))]


def _curves(test: Backtest) -> list[Series]:
    """The cost above the oracle's of each target near the risk, and of ours as a short dash."""
    risk, ours = test.risk_ratio, test.outcomes[0].score
    curves = []
    for policy, tried in test.tried.items():
        points = sorted((o.score.short_ratio, o.score.cost_ratio - 1.0) for o in tried)
        curves.append(Series(policy, [one for one in points if risk / 5 <= one[0] <= 3 * risk]))
    # No share is below 0, and none is to stand on the axis.
    left, right = max(0.0, ours.short_ratio - risk / 10), ours.short_ratio + risk / 10
    dash = [(share, ours.cost_ratio - 1.0) for share in (left, right)]
    return [*curves, Series("ours", dash)]


def _short_so_far(test: Backtest) -> list[Series]:
    load = test.load
    width = -(-(len(load.demand) - load.warmup_steps) // MAX_POINTS)
    ends = range(load.warmup_steps, len(load.demand), width)
    lines = []
    for outcome in test.outcomes:
        if outcome.policy == "oracle":
            continue
        short, passed, points = outcome.score.short_steps, 0, []
        for end in ends:
            while passed < len(short) and short[passed] <= end:
                passed += 1
            points.append((_at(load, end), float(passed)))
        lines.append(Series(outcome.policy, points))
    allowed = [(_at(load, end), test.risk_ratio * (end - load.warmup_steps)) for end in ends]
    return [*lines, Series("allowed", allowed)]


def _at(load: Load, step: int) -> float:
    """When that is, in the unit of the axis."""
    return step * load.step_seconds / _unit(load)[1]


def _unit(load: Load) -> tuple[str, float]:
    """Of the axis of time, and its seconds: one of which the series has two or more."""
    return _unit_of(len(load.demand) * load.step_seconds / 2)


def _unit_of(seconds: float) -> tuple[str, float]:
    if seconds >= DAY_SECONDS:
        return "days", DAY_SECONDS
    return ("h", 3600.0) if seconds >= 3600 else ("minutes", 60.0)


def _length(load: Load, steps: int) -> str:
    seconds = steps * load.step_seconds
    name, unit = _unit_of(seconds)
    return f"{seconds / unit:.1f} {name}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value.is_integer() else repr(value)
