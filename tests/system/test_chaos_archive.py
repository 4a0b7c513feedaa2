"""`benchmarks.chaos_archive` for a few cycles, over S3 (`make test-long`)."""

import subprocess
import sys

import msgspec
import pytest

from benchmarks.chaos_archive import Result
from tests.support.program import ROOT, environment

CYCLES = 3

pytestmark = [pytest.mark.long, pytest.mark.bus, pytest.mark.timeout(900)]


def test_kills_of_cache_archivers_server_and_s3_lose_nothing_and_bring_nothing_back() -> None:
    command = [sys.executable, "-m", "benchmarks.chaos_archive", "--s3", "moto", "--json"]

    done = subprocess.run(
        [*command, "--cycles", str(CYCLES)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        timeout=800,
        check=False,
    )

    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
    result = msgspec.json.decode(done.stdout, type=Result)
    last = result.cycles[-1].counts
    outcomes = (last.readable, last.superseded, last.expired, last.in_doubt, last.lost)
    assert len(result.cycles) == CYCLES
    assert last.acknowledged == sum(outcomes) > 0
    assert last.lent > 0
    assert (last.lost, result.violations, result.rebuilt) == (0, [], True)
