"""What `make bench` runs, and its figures of few rounds."""

from pathlib import Path

import benchmarks
from benchmarks.__main__ import ALONE, WITH_DATA
from benchmarks.rounds import Spread, spread


def test_every_benchmark_is_run_or_said_to_be_left_out() -> None:
    folder = Path(benchmarks.__path__[0])

    there = {path.stem for path in folder.glob("bench_*.py")}

    assert there == {*ALONE, *WITH_DATA}


def test_one_round_has_no_spread() -> None:
    assert spread([2.0]) == Spread(2.0, 2.0, 2.0)
    assert spread([1.0, 2.0, 3.0]) == Spread(2.0, 1.0, 3.0)
