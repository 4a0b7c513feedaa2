"""Every counter is there from the start: who alerts on one can tell 0 from a wrong name."""

import re
from pathlib import Path
from typing import get_args

import pytest

from agent import scraping, service
from agent.bus import incidents
from agent.gpus import GpuSampler
from archive import announce
from archive.keeping import Outcome
from handlers import runtime

ROOT = Path(__file__).parents[2]
GPUS = tuple(GpuSampler([], timeout_seconds=1, rescan_seconds=60).counters)


@pytest.mark.parametrize(
    ("sources", "declared", "computed"),
    [
        pytest.param("agent/bus/*.py", incidents.COUNTERS, (), id="bus"),
        pytest.param("handlers/*.py", runtime.COUNTERS, (), id="handlers"),
        pytest.param("agent/*.py", (*service.COUNTERS, *scraping.COUNTERS, *GPUS), (), id="agent"),
        pytest.param(
            "archive/*.py",
            announce.COUNTERS,
            (*get_args(Outcome), "cleared", "tombstones_dropped"),
            id="archive",
        ),
    ],
)
def test_what_is_counted_is_declared_and_what_is_declared_is_counted(
    sources: str, declared: tuple[str, ...], computed: tuple[str, ...]
) -> None:
    found = {
        name
        for path in ROOT.glob(sources)
        for name in re.findall(r'count(?:er)?s(?:\[.*\])?\["(\w+_total)"\] \+=', path.read_text())
    }

    assert found | {f"{name}_total" for name in computed} == set(declared)


def test_declared_counters_begin_at_zero() -> None:
    counters = incidents.Incidents("test").counters

    assert counters == dict.fromkeys(incidents.COUNTERS, 0)
