"""The demo tells the truth: every step happens, and a broken one fails it."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from agent.demo.story import STEPS
from tests.support.program import ROOT, environment
from tests.support.waiting import until

SECONDS = 50.0


async def start_demo(folder: Path, *arguments: str) -> asyncio.subprocess.Process:
    """A demo with its temporary folder in `folder`, in an environment that leads astray."""
    os.mkdir(folder)
    astray = {
        "NATS_URL": "nats://127.0.0.1:1",
        "RESOURCE_AGENT_STATE_DIR": str(folder / "state-of-another"),
        "RESOURCE_AGENT_ROOT": "another.root",
        "TMPDIR": str(folder),
    }
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent", "demo", *arguments),
        cwd=ROOT,
        env={**environment(), **astray},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def told(folder: Path, *arguments: str) -> tuple[int | None, dict[str, Any]]:
    """Exit code and report of a demo that has ended."""
    demo = await start_demo(folder, "--json", *arguments)
    async with asyncio.timeout(SECONDS):
        out, err = await demo.communicate()
    assert out, err.decode()
    return demo.returncode, json.loads(out)


async def test_the_demo_tells_the_whole_story_and_leaves_nothing_behind(tmp_path: Path) -> None:
    code, report = await told(tmp_path / "demo")

    steps = {step["name"]: step for step in report["steps"]}
    figures = {name: step["figures"] for name, step in steps.items()}
    assert (code, report["ok"]) == (0, True)
    assert list(steps) == list(STEPS)
    assert all(step["ok"] and step["text"] for step in steps.values())
    assert report["seconds"] < 45
    assert figures["server"]["services"] == ["agent", "archive", "cache", "handlers"]
    assert figures["metrics"]["memory_total_bytes"] > 0
    assert not figures["metrics"]["simulated"]
    assert figures["metrics"]["gpu"]["simulated"]
    assert figures["advice"]["simulated"]
    assert figures["advice"]["replicas_to"] > figures["advice"]["replicas_from"]
    assert 0 < figures["advice"]["metric_to_advice_seconds"] < steps["advice"]["seconds"]
    assert figures["evict"]["acknowledged"] == figures["evict"]["evictions"] > 0
    assert figures["archive"]["entries"] == figures["evict"]["evictions"]
    assert figures["archive"]["compression_ratio"] > 1.5
    assert figures["restore"]["bytes"] > 0
    assert os.listdir(tmp_path / "demo") == []


async def test_a_sabotaged_step_fails_the_demo_there(tmp_path: Path) -> None:
    # Eleven demos of five processes at once starve each other on a small machine.
    few = asyncio.Semaphore(3)

    async def failed_step(name: str) -> tuple[int | None, str, bool]:
        async with few:
            code, report = await told(tmp_path / name, "--break", name)
        last = report["steps"][-1]
        return code, last["name"], report["ok"] or last["ok"] or not last["text"]

    outcomes = await asyncio.gather(*map(failed_step, STEPS))

    assert dict(zip(STEPS, outcomes, strict=True)) == {name: (1, name, False) for name in STEPS}


async def test_a_terminated_demo_cleans_up(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    demo = await start_demo(folder)
    await until(lambda: bool(list(folder.glob("*/state/up.json"))))

    demo.send_signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        _, err = await demo.communicate()

    assert demo.returncode == 130
    assert b"Traceback" not in err
    assert os.listdir(folder) == []


async def test_a_step_that_does_not_exist_cannot_be_broken(tmp_path: Path) -> None:
    demo = await start_demo(tmp_path / "demo", "--break", "nonsense")

    async with asyncio.timeout(10):
        _, err = await demo.communicate()

    assert demo.returncode == 2
    assert b"no step 'nonsense'" in err
