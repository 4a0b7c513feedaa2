import csv
import json
import math
from pathlib import Path

import msgspec
import pytest

from agent.backtest import Backtest, write_html
from handlers.backtest.run import Load
from tests.support.loads import service_load
from tests.support.program import resource_agent

OPTIONS = ("--column", "load", "--step", "60", "--capacity", "100", "--lead", "180")


@pytest.fixture
def series(tmp_path: Path) -> Path:
    path = tmp_path / "load.csv"
    rows = (f"{60 * step},{value:.0f}" for step, value in enumerate(service_load(400)))
    path.write_text("\n".join(("t_s,load", *rows)) + "\n")
    return path


def test_all_policies_are_compared_and_written_down(series: Path, tmp_path: Path) -> None:
    orders, page = tmp_path / "orders.csv", tmp_path / "page.html"

    done = resource_agent(
        "backtest", "--series", series, *OPTIONS, "--decisions", orders, "--html", page
    )

    assert done.returncode == 0, done.stderr
    names = [line.split("  ")[0].strip() for line in done.stdout.decode().splitlines()]
    assert names[:5] == ["policy", "ours", "hpa at 0.70", "keda at 0.70", "oracle"]
    rows = list(csv.reader(orders.read_text().splitlines()))
    assert rows[0] == ["t", "demand", "replicas_wanted"]
    assert [row[:2] for row in rows[1:]] == [
        [str(60 * step), f"{value:.0f}"] for step, value in enumerate(service_load(400))
    ]
    assert all(int(row[2]) >= 1 for row in rows[1:])
    text = page.read_text()
    assert text.count("<svg") == 3  # the day with the most short steps is all there is
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_the_decisions_give_the_figures_that_are_printed(series: Path, tmp_path: Path) -> None:
    orders = tmp_path / "orders.csv"
    options = ("--policy", "ours", "--warmup", "6000", "--decisions", orders, "--json")

    done = resource_agent("backtest", "--series", series, *OPTIONS, *options)

    told = json.loads(done.stdout)["rows"][0]
    rows = list(csv.DictReader(orders.read_text().splitlines()))
    demand = [float(row["demand"]) for row in rows]
    wanted = [int(row["replicas_wanted"]) for row in rows]
    # Ordered after step t: paid from t + 1, serving from t + 4; what is given up goes at once.
    first = math.ceil(demand[100] / 70.0) + 1
    ordered = [first] * 4 + wanted[100:]
    ready = [min(ordered[step : step + 4]) for step in range(300)]
    short = sum(load > 100.0 * count for load, count in zip(demand[100:], ready, strict=True))
    assert told["short_ratio"] == short / 300
    assert told["replica_hours"] == pytest.approx(sum(ordered[3:303]) / 60.0)
    assert told["cost_ratio"] == pytest.approx(
        sum(ordered[3:303]) / sum(math.ceil(load / 100.0) for load in demand[100:])
    )


@pytest.mark.parametrize(("steps", "charts"), [(1440, 3), (1441, 4)])
def test_a_day_is_shown_again_only_where_there_is_more(
    tmp_path: Path, steps: int, charts: int
) -> None:
    demand = [100.0, *[50.0] * (steps - 2), 950.0]
    load = Load(demand=demand, capacity=100.0, step_seconds=60.0, lead_seconds=180.0)
    test = Backtest("jump", load, "all", risk_ratio=0.01, target_ratio=0.7, max_replicas=100)
    test.run()

    write_html(test, page := tmp_path / "page.html")

    assert test.outcomes[0].score.short_steps == [steps - 1]
    assert page.read_text().count("<svg") == charts


@pytest.mark.parametrize(
    ("steps", "unit", "scored"),
    [(10, "minutes", "7.0 minutes"), (200, "h", "3.3 h"), (3000, "days", "2.1 days")],
)
def test_time_is_in_a_unit_that_fits(tmp_path: Path, steps: int, unit: str, scored: str) -> None:
    load = Load(demand=[50.0] * steps, capacity=100.0, step_seconds=60.0, lead_seconds=180.0)
    load = msgspec.structs.replace(load, warmup_steps=3)
    test = Backtest("flat", load, "hpa", risk_ratio=0.01, target_ratio=0.7, max_replicas=100)
    test.run()

    write_html(test, page := tmp_path / "page.html")

    assert f"{scored} scored after 3.0 minutes of warm-up" in page.read_text()
    assert f">{unit}<" in page.read_text()


def test_no_share_below_zero_is_on_an_axis(tmp_path: Path) -> None:
    load = Load(demand=[250.0] * 60, capacity=100.0, step_seconds=60.0, lead_seconds=180.0)
    test = Backtest("flat", load, "all", risk_ratio=0.01, target_ratio=0.7, max_replicas=100)
    test.run()

    write_html(test, page := tmp_path / "page.html")

    assert test.outcomes[0].score.short_ratio == 0
    assert ">0.0%<" in page.read_text()
    assert ">-" not in page.read_text()


def test_one_policy_is_told_as_json(series: Path) -> None:
    done = resource_agent(
        *("backtest", "--series", series, *OPTIONS, "--policy", "keda", "--target", "0.8"),
        *("--warmup", "6000", "--json"),
    )

    told = json.loads(done.stdout)
    assert done.stderr == b""
    assert (told["steps"], told["warmup_steps"], told["lead_seconds"]) == (400, 100, 180.0)
    assert [(row["policy"], row["target_ratio"]) for row in told["rows"]] == [("keda", 0.8)]
    assert told["rows"][0]["cost_ratio"] > 1


def test_later_rows_do_not_change_earlier_orders(series: Path, tmp_path: Path) -> None:
    lines = series.read_text().splitlines()
    other = tmp_path / "other.csv"
    other.write_text("\n".join([*lines[:251], *(f"{line}0" for line in lines[251:])]))
    ordered = []

    for path in (series, other):
        out = tmp_path / "out.csv"
        resource_agent(
            *("backtest", "--series", path, *OPTIONS, "--policy", "ours", "--decisions", out)
        )
        ordered.append([row[2] for row in csv.reader(out.read_text().splitlines())])

    # From row 251 on the load is ten times as high.
    assert ordered[0][:251] == ordered[1][:251]
    assert ordered[0] != ordered[1]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        pytest.param({"--column": "x"}, "no column 'x'", id="column"),
        pytest.param({"--capacity": "0"}, "must be above 0", id="capacity"),
        pytest.param({"--capacity": "inf"}, "--capacity inf: must be a finite", id="all"),
        pytest.param({"--capacity": "nan"}, "--capacity nan: must be a finite", id="nan"),
        pytest.param({"--capacity": "1e-9"}, "need 1e+12 replicas", id="another-unit"),
        pytest.param({"--lead": "inf"}, "--lead inf: must be a finite", id="never-ready"),
        pytest.param({"--step": "inf"}, "--step inf: must be a finite", id="one-step"),
        pytest.param({"--warmup": "inf"}, "--warmup inf: must be a finite", id="only-warm-up"),
        pytest.param({"--series": "/nowhere.csv"}, "No such file", id="file"),
        pytest.param({"--from-stream": "chat"}, "--from-stream alone", id="both"),
        pytest.param({"--warmup": "1e9"}, "the series has only", id="warm-up"),
    ],
)
def test_wrong_use_is_told_in_a_line(series: Path, changed: dict[str, str], says: str) -> None:
    options = dict(zip(OPTIONS[::2], OPTIONS[1::2], strict=True)) | {"--series": str(series)}
    arguments = [word for pair in (options | changed).items() for word in pair]

    done = resource_agent("backtest", *arguments)

    assert done.returncode == 2
    assert says in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_what_cannot_be_written_is_told_before_the_run(series: Path, tmp_path: Path) -> None:
    done = resource_agent("backtest", "--series", series, *OPTIONS, "--decisions", tmp_path)

    assert done.returncode != 0
    assert b"Is a directory" in done.stderr
    assert done.stdout == b""
