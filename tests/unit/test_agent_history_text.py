from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agent.views.history_points import as_csv
from agent.views.history_text import BARS, NoSuchMetricError, history_lines
from schemas.api import HistoryReply, HistorySample
from schemas.history import AnalysisHistoryReply, AnalysisRow, CacheHistoryReply, CacheSample

START = datetime(2026, 11, 22, 8, tzinfo=UTC)
HOUR = timedelta(hours=1)


def after(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def gpus(*samples: tuple[float, str, dict[str, Any]], **fields: Any) -> HistoryReply:
    values: dict[str, Any] = {
        "source": "metrics",
        "start": START,
        "end": START + HOUR,
        "samples": [
            HistorySample(at=after(minute), node="n1", gpu=name, simulated=False, values=of)
            for minute, name, of in samples
        ],
        "matched": len(samples),
    }
    return HistoryReply(**values | fields)


def row_of(lines: list[str], name: str) -> str:
    return next(line for line in lines if line.startswith(f"  {name}"))


def drawn(line: str) -> str:
    return "".join(char for char in line if char in BARS)


def test_a_metric_is_a_line_with_bars_lowest_mean_highest_and_last() -> None:
    samples = [(minute, "g0", {"power_watts": 100.0 + minute}) for minute in range(60)]
    lines = history_lines("GPUs", gpus(*samples), ["power_watts"], 80)

    assert lines[:2] == [
        "GPUs, 2026-11-22 08:00 to 09:00 UTC (60.0 min)",
        "60 samples, from metrics; a bar is " + lines[1].rsplit("; a bar is ")[1],
    ]
    assert lines[3].split() == ["n1", "g0", "low", "mean", "high", "last"]
    line = row_of(lines, "power_watts")
    assert line.endswith("100 W  130 W  159 W  159 W")
    assert list(drawn(line)) == sorted(drawn(line))
    assert (drawn(line)[0], drawn(line)[-1]) == (BARS[0], BARS[-1])
    assert max(map(len, lines)) <= 80


def test_what_differs_in_its_last_bits_alone_is_drawn_flat() -> None:
    samples = [(minute, "g0", {"power_watts": 31.92 + minute * 1e-14}) for minute in range(60)]
    lines = history_lines("GPUs", gpus(*samples), ["power_watts"], 80)

    assert set(drawn(row_of(lines, "power_watts"))) == {"▄"}


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_every_line_fits(columns: int) -> None:
    name = "network_max_received_bytes_per_second"
    samples = [(minute, "g0", {name: 1e9 * minute, "x_ratio": 0.5}) for minute in range(60)]

    lines = history_lines("GPUs", gpus(*samples), [name, "x_ratio"], columns)

    assert max(map(len, lines)) <= columns


def test_a_gap_stays_empty_and_rare_samples_are_joined() -> None:
    samples = [(minute, "g0", {"x_ratio": 1.0}) for minute in (*range(0, 20, 5), *range(40, 60, 5))]

    line = row_of(history_lines("GPUs", gpus(*samples), ["x_ratio"], 80), "x_ratio")

    bars = line[len("  x_ratio  ") : line.index("100 %")].rstrip()
    first, gap, second = bars.partition(" ")
    assert set(first) == {BARS[-1]}
    assert len(first) >= 10
    assert len(second) - len(second.lstrip()) + len(gap) >= 10


def test_what_is_not_known_has_no_line_and_zero_is_a_number() -> None:
    reply = gpus((1, "g0", {"a_ratio": 0.0}), (2, "g1", {"b_ratio": 0.5}))

    lines = history_lines("GPUs", reply, ["a_ratio", "b_ratio"], 80)

    assert lines[3].startswith("n1 g0 ")
    assert lines[4].endswith("0 %   0 %   0 %   0 %")
    assert lines[6] == "n1 g1"
    assert len(lines) == 8


def test_of_a_minute_the_lowest_and_highest_sample_count() -> None:
    minute = {"min": 0.1, "mean": 0.5, "max": 0.9, "p95": 0.9, "count": 12}
    reply = gpus((1, "g0", {"x_ratio": minute}), source="rollups")

    lines = history_lines("GPUs", reply, ["x_ratio"], 80)

    assert lines[1].startswith("1 sample, from rollups")
    assert lines[-1].endswith("10 %  50 %  90 %  50 %")


def test_of_a_counter_its_growth_a_second_and_none_where_it_began_anew() -> None:
    totals = [0.0, 60.0, 180.0, 0.0, 60.0]
    reply = CacheHistoryReply(
        source="metrics",
        start=START,
        end=START + HOUR,
        samples=[
            CacheSample(
                at=after(minute),
                instance="c1",
                namespace="default",
                simulated=False,
                values={"hits_total": total},
            )
            for minute, total in enumerate(totals)
        ],
        matched=5,
    )

    lines = history_lines("caches", reply, ["hits_total"], 80)

    assert lines[3].startswith("c1 default ")
    assert row_of(lines, "hits_total/s").split()[-4:] == ["1", "1.33", "2", "1"]


def judged(*values: dict[str, float | str], places: int = 1, matched: int = 0) -> Any:
    rows = [
        AnalysisRow(
            at=after(minute),
            scope="pool",
            id=f"p{number:02}",
            source="events",
            simulated=True,
            values=of,
        )
        for number in range(places)
        for minute, of in enumerate(values)
    ]
    return AnalysisHistoryReply(
        kind="utilization",
        source="events",
        start=START,
        end=START + HOUR,
        rows=rows,
        matched=matched or len(rows),
    )


def test_words_are_told_by_how_often_they_were_said() -> None:
    reply = judged({"health": "healthy"}, {"health": "healthy"}, {"health": "critical"})

    lines = history_lines("utilization", reply, ["health"], 80)

    assert lines[3].startswith("pool p00 (simulated) ")
    assert row_of(lines, "health").split("  ")[2] == "healthy 67 %, critical 33 %"
    assert lines[-1].endswith("critical")


def test_thinning_and_too_many_places_are_told() -> None:
    reply = judged({"x_ratio": 0.5}, places=15, matched=300)

    lines = history_lines("utilization", reply, ["x_ratio"], 80)

    assert lines[1].startswith("15 rows of 300, thinned evenly, from events")
    assert lines[-1] == "and 3 more: name one, or take --csv or --json"


def test_an_unknown_metric_names_those_that_are_there() -> None:
    with pytest.raises(NoSuchMetricError, match=r"--metric nope: not in this range; .* a, b"):
        history_lines("GPUs", gpus((1, "g0", {"b": 1.0, "a": 1.0})), ["nope"], 80)


def test_an_empty_answer_is_its_reason() -> None:
    reply = gpus(text="no GPU metric is recorded")

    assert history_lines("GPUs", reply, ["x"], 80)[1:] == ["no GPU metric is recorded"]


def test_a_csv_has_a_column_a_value_and_leaves_unknown_ones_empty() -> None:
    minute = {"min": 0.1, "mean": 0.5, "max": 0.9, "p95": 0.9, "count": 12}
    reply = gpus((1, "g0", {"a": 1.5}), (2, "g1", {"b_ratio": minute}))

    assert as_csv(reply).splitlines() == [
        "at,node,gpu,source,simulated,a,b_ratio.min,b_ratio.mean,b_ratio.max",
        "2026-11-22T08:01:00.000000Z,n1,g0,metrics,false,1.5,,,",
        "2026-11-22T08:02:00.000000Z,n1,g1,metrics,false,,0.1,0.5,0.9",
    ]
    assert as_csv(gpus()) == ""
