"""Advice listed, approved, carried out, rejected and explained, as a user types it."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.bus import connect
from schemas.scaling import HeldAdvice
from tests.support.advice import advice, tell
from tests.support.program import Up, in_thread, resource_agent, running_up

PYTHON = (sys.executable, "-S", "-c")
WRITE = "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"
READ = "import sys; print(open(sys.argv[1]).read())"


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """Everything in one process, with an executor that keeps the replicas in a file."""
    replicas = tmp_path / "replicas"
    replicas.write_text("2")
    settings = tmp_path / "settings.toml"
    scale = json.dumps([*PYTHON, WRITE, str(replicas), "{replicas_to}"])
    observe = json.dumps([*PYTHON, READ, str(replicas)])
    settings.write_text(
        f'[executor]\nkind = "command"\ndry_run = false\n'
        f"[executor.command]\nscale = {scale}\nobserve = {observe}\n"
    )
    with running_up(tmp_path / "up", "--node", "n1", "--config", settings) as running:
        yield running


@pytest.mark.timeout(180)  # six commands one after the other, on a machine that may be busy
async def test_advice_is_listed_approved_carried_out_and_explained(up: Up, tmp_path: Path) -> None:
    one = advice(1, text="40 requests wait", saving_usd_per_hour=-4.0)
    money: dict[str, Any] = {
        "saving_usd_per_hour": 4.0,
        "one_off_cost_usd": 0.01,
        "payback_hours": 0.0025,
    }
    other = advice(2, pool="code", simulated=True, **money)
    held = HeldAdvice(
        pool="embed",
        decided_at=one.decided_at,
        action="scale_down",
        replicas_from=4,
        replicas_to=3,
        reason="failure",
        text="3 are too few",
    )
    async with await connect(up.url, name="test") as bus:
        await tell(bus, one, other)
        await bus.publish(held, message_id="held")
    name = one.recommendation_id

    listed = await in_thread(up.command, "advise")
    rehearsed = await in_thread(up.command, "approve", name, "--execute", "--by", "ann")
    untouched = (tmp_path / "replicas").read_text()
    done = await in_thread(up.command, "approve", name, "--execute", "--for-real", "--json")
    changed = (tmp_path / "replicas").read_text()
    again = await in_thread(up.command, "approve", name, "--execute", "--for-real")
    late = await in_thread(up.command, "reject", name, "--reason", "toy")
    explained = await in_thread(up.command, "explain", name)

    text = listed.stdout.decode()
    assert f"{name}  scale_up chat 2 → 3  [open]" in text
    assert "why: 40 requests wait" in text
    assert "costs $4.00/h, low risk, confidence 100%, stands for" in text
    assert f"next: resource-agent approve {name}" in text
    assert "saves $4.00/h, $0.01 once, pays back in 9.0 s, low risk" in text
    assert "from simulated evidence" in text
    assert "not advised: scale_down embed 4 → 3: 3 are too few  [failure]" in text
    assert (rehearsed.returncode, untouched) == (0, "2"), rehearsed.stderr
    assert rehearsed.stdout.decode().startswith("dry run succeeded: would run [")
    assert (done.returncode, changed) == (0, "3"), done.stderr
    execution = json.loads(done.stdout)["execution"]
    assert (execution["replicas_before"], execution["replicas_after"]) == (2, 3)
    assert (again.returncode, b"nothing was begun now" in again.stderr) == (0, True)
    assert b"nothing was begun now" not in rehearsed.stderr
    assert (late.returncode, b"local:ann accepted it at" in late.stderr) == (1, True)
    story = explained.stdout.decode()
    assert f"{name}  scale_up chat 2 → 3  [executed]" in story
    assert "decision.accepted.chat  by local:ann" in story
    assert "execution succeeded (2 → 3 replicas)" in story


def test_acting_is_for_those_who_say_so() -> None:
    refused = resource_agent("approve", "chat.scale_up.1", "--for-real")

    assert refused.returncode == 2
    assert b"--for-real and --key are for --execute" in refused.stderr
