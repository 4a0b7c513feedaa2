"""A whole run as it is read in a terminal."""

from datetime import UTC, datetime, timedelta

import pytest

from agent.views.run_text import run_lines
from schemas.analysis import Utilization
from schemas.api import UtilizationReply
from schemas.run import RunReply

NOW = datetime(2026, 11, 22, 17, 33, 56, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, ""), (119, ""), (318, ", judged 5.3 min ago"), (-3, "")]
)
def test_a_judgement_that_is_old_says_how_old(seconds: int, told: str) -> None:
    judged = Utilization(
        scope="pool",
        id="big",
        decided_at=NOW - timedelta(seconds=seconds),
        window_seconds=60.0,
        level=None,
        health=None,
        efficiency_ratio=None,
        resources=[],
        bottlenecks=[],
        gpus=[],
        balance_ratio=None,
        nodes=1,
        simulated=False,
    )
    run = RunReply(
        answered_at=NOW,
        scope="fleet",
        id="all",
        correlation_id="run-1",
        state="complete",
        began_at=NOW,
        seconds=0.1,
        steps=[],
        collected=None,
        utilization=UtilizationReply(answered_at=NOW, rows=[judged], total=1),
        alerts=None,
        waste=None,
        trends=None,
        opportunities=None,
        insight=None,
        recommendations=None,
    )

    (line,) = [line for line in run_lines(run) if "pool big" in line]

    assert line.strip() == f"pool big: not measured, health unknown; nothing measured{told}"
