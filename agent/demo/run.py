"""`resource-agent demo`: tells the whole story on a server of its own, and checks every step."""

import asyncio
import contextlib
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape

from agent.assembly import Place, Simulation
from agent.bus import BusError
from agent.bus.cancellation import end
from agent.demo.parts import StepError
from agent.demo.story import STEPS, Seen, Story
from agent.identity import load_identity
from agent.nats_server.binary import ServerNotFoundError, fetch_server, find_server
from agent.nats_server.process import ServerStartError
from agent.settings import Settings
from agent.state_folder import StateFolderError
from agent.up import program
from schemas.protocols import PublishError, RequestError

STEP_SECONDS = 12.0
BROKEN_STEP_SECONDS = 5.0
"""More than any step takes that is not broken, so that it fails of the sabotage alone."""
STORY_SECONDS = 34.0
"""With the drain at the end the demo stays below 45 s, whatever happens."""
SHORTENED: dict[str, Any] = {
    "agent": {"interval_seconds": 0.5},
    "cache": {"max_memory_mb": 1},
    "handlers": {"scaling": {"up_hold_seconds": 1.0}},
}
"""So that the story takes seconds; said in the output."""
FAILURES = (
    BusError,
    OSError,
    PublishError,
    RequestError,
    ServerNotFoundError,
    ServerStartError,
    StateFolderError,
    StepError,
)


class StepReport(msgspec.Struct, frozen=True, kw_only=True):
    """One step: what happened, or why it failed."""

    name: str
    ok: bool
    seconds: float
    text: str
    figures: dict[str, Any] = {}


class DemoReport(msgspec.Struct, frozen=True, kw_only=True):
    """The story so far; it ends with the first step that failed."""

    ok: bool
    seconds: float
    shortened: dict[str, Any]
    steps: list[StepReport]


async def run_demo(*, nats_server: Path | None, as_json: bool, break_step: str | None) -> bool:
    """Tell the story in a temporary folder and print it. True when every step happened.

    Uses nothing of this machine's own installation: neither NATS_URL nor settings nor state
    folder. With `break_step` that step is sabotaged, and the demo must fail there.

    Raises:
        ServerNotFoundError: no nats-server, and none could be fetched.
        ValueError: there is no such step to break.
    """
    if break_step is not None and break_step not in STEPS:
        raise ValueError(f"no step {break_step!r}; there are: {', '.join(STEPS)}")
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # both clean up
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    waiting = asyncio.create_task(stopped.wait())
    telling = asyncio.create_task(_run(nats_server, as_json, break_step))
    try:
        await asyncio.wait({telling, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if stopped.is_set():
            raise KeyboardInterrupt
        return telling.result()
    finally:
        await end(telling, waiting)


async def _run(nats_server: Path | None, as_json: bool, break_step: str | None) -> bool:
    console = Console(quiet=as_json, highlight=False)
    binary = find_server(nats_server)
    if binary is None:
        binary = await asyncio.to_thread(fetch_server, console.print)
    started = time.monotonic()
    steps: list[StepReport] = []
    _print_opening(console)
    with tempfile.TemporaryDirectory(prefix="resource-agent-demo-") as folder:
        async with contextlib.AsyncExitStack() as stack:
            story = Story(
                place=await _place(Path(folder), break_step),
                binary=binary,
                sabotage=break_step,
                stack=stack,
            )
            async for step in _tell(story, console):
                steps.append(step)
                _print_step(console, step)
    report = DemoReport(
        ok=len(steps) == len(STEPS) and all(step.ok for step in steps),
        seconds=time.monotonic() - started,
        shortened=SHORTENED,
        steps=steps,
    )
    if as_json:
        print(msgspec.json.encode(report).decode())
    _print_ending(console, report)
    return report.ok


async def _place(folder: Path, break_step: str | None) -> Place:
    """The installation of the demo: simulated GPUs, a server that admits nobody else."""
    with socket.socket() as probe:  # any free port: 4222 is for a real installation
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tree = {**SHORTENED, "state_dir": str(folder / "state")}
    tree["server"] = {"guest": "off", "preferred_port": port}
    if break_step == "evict":
        tree["cache"] = {"max_memory_mb": 64}
    settings = msgspec.convert(tree, Settings)
    return Place(
        settings=settings,
        identity=await asyncio.to_thread(load_identity, settings.state_folder()),
        instance=settings.node_token(),
        simulation=Simulation(gpus="2xH100"),
    )


async def _tell(story: Story, console: Console) -> AsyncIterator[StepReport]:
    """Each step's report, until one has failed or the time is over."""
    end = time.monotonic() + STORY_SECONDS
    for name, (happen, missing) in STEPS.items():
        started = time.monotonic()
        limit_seconds = BROKEN_STEP_SECONDS if name == story.sabotage else STEP_SECONDS
        limit_seconds = min(limit_seconds, end - started)
        seen, trouble = Seen("", {}), ""
        try:
            with console.status(name):
                async with asyncio.timeout(limit_seconds):
                    seen = await happen(story)
        except TimeoutError:
            trouble = f"{missing} within {limit_seconds:.0f} s"
        except FAILURES as error:
            trouble = str(error)
        yield StepReport(
            name=name,
            ok=not trouble,
            seconds=time.monotonic() - started,
            text=trouble or seen.text,
            figures=dict(seen.figures),
        )
        if trouble:
            return


def _print_opening(console: Console) -> None:
    scaling, cache = SHORTENED["handlers"]["scaling"], SHORTENED["cache"]
    console.print(
        "\n[bold]resource-agent demo[/]: metrics, advice, cache, archive, restore, each step "
        "checked on the bus.\n"
        "[dim]A private server in a temporary folder. Shortened for the demo: metrics every "
        f"{SHORTENED['agent']['interval_seconds']:g} s, advice after "
        f"{scaling['up_hold_seconds']:g} s of overload, {cache['max_memory_mb']} MiB of cache.\n"
        "Engines and GPUs are simulated and labelled so; everything else is real.[/]\n",
        soft_wrap=True,
    )


def _print_step(console: Console, step: StepReport) -> None:
    mark = "[green]✓[/]" if step.ok else "[red]✗[/]"
    console.print(f"{mark} [bold]{step.name:8}[/] [dim]{step.seconds:5.1f} s[/]  ", end="")
    indent = "\n" + " " * 20
    console.print(step.text.replace("\n", indent), markup=False, soft_wrap=True)


def _print_ending(console: Console, report: DemoReport) -> None:
    if report.ok:
        console.print(
            f"\n[green]All {len(report.steps)} steps happened[/], {report.seconds:.1f} s with "
            f"start and stop. Next: [bold]{escape(program())} up[/]\n",
            soft_wrap=True,
        )
    else:
        console.print(f"\n[red]The demo failed at step {report.steps[-1].name}.[/]\n")
