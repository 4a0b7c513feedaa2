"""The real command line as a subprocess, and an `up` that is started, asked and stopped."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 60.0
LOOK_SECONDS = 0.01


def environment(**settings: object) -> dict[str, str]:
    """Ours, without anything that leads to another installation, and with `settings`.

    A setting is written `agent__interval_seconds=0.5`.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name != "NATS_URL" and not name.startswith("RESOURCE_AGENT_")
    }
    chosen = {f"RESOURCE_AGENT_{name.upper()}": str(value) for name, value in settings.items()}
    return {**inherited, "COLUMNS": "120", **chosen}


def resource_agent(
    *arguments: object, env: Mapping[str, str] | None = None, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run one command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "agent", *map(str, arguments)],
        cwd=ROOT,
        env=dict(env or environment()),
        input=stdin,
        capture_output=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


class Up:
    """A running `resource-agent up`; what it wrote is in `<folder>/out` and `<folder>/err`."""

    def __init__(self, folder: Path, *arguments: object, **settings: object) -> None:
        self.folder = folder
        self.state_dir = folder / "state"
        self.ready_file = folder / "ready.json"
        self.env = environment(**settings)
        folder.mkdir(parents=True, exist_ok=True)
        self.started = time.monotonic()
        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "agent", "up"),
                    *("--state-dir", str(self.state_dir), "--ready-file", str(self.ready_file)),
                    *map(str, arguments),
                ],
                cwd=ROOT,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    @property
    def stdout(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def stderr(self) -> str:
        return (self.folder / "err").read_text()

    @property
    def url(self) -> str:
        """Address with all rights."""
        return str(self.ready()["nats_url"])

    def ready(self) -> dict[str, Any]:
        """The ready file's content, once it is there: not one that a killed `up` left behind."""
        while (content := self._ready_content()).get("pid") != self.process.pid:
            assert self.process.poll() is None, self.stderr
            assert time.monotonic() - self.started < DEADLINE_SECONDS, self.stderr
            time.sleep(LOOK_SECONDS)
        return content

    def _ready_content(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.ready_file.read_text()))
        except FileNotFoundError:
            return {}

    def command(
        self, name: str, *arguments: object, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """Run another command, `name` or `group name`, that finds this `up` by its state folder."""
        return resource_agent(
            *name.split(), "--state-dir", self.state_dir, *arguments, env=self.env, stdin=stdin
        )

    def server_pid(self) -> int:
        """Process id of the private nats-server; its guard writes it into the lock file."""
        return int((self.state_dir / "nats" / "lock").read_text())

    def stop(self, number: int = signal.SIGINT) -> int:
        """Signal it and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(DEADLINE_SECONDS)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(DEADLINE_SECONDS)


@contextlib.contextmanager
def running_up(folder: Path, *arguments: object, **settings: object) -> Iterator[Up]:
    """An `up` that is ready, and stopped in the end, whatever happens."""
    up = Up(folder, *arguments, **settings)
    try:
        up.ready()
        yield up
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            up.stop()
        if up.process.poll() is None:
            up.kill()


async def in_thread(work: Any, *arguments: object) -> Any:
    """Run a blocking helper while the bus goes on."""
    return await asyncio.to_thread(work, *arguments)
