"""Changes a pool by a program: no shell, few variables, bounded output."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence

from agent.executors.settings import CommandSettings
from agent.executors.target import ActionError
from agent.human import printable, reason
from schemas.scaling import Recommendation

OUTPUT_BYTES = 4096
_LAST_WORDS_SECONDS = 1.0
_ALWAYS_PASSED = ("PATH", "HOME", "LANG")


class CommandTarget:
    """Runs the programs of the settings.

    Each has a process group of its own, which ends with it: what it left behind, and all of it
    when it is cut off.
    """

    def __init__(self, settings: CommandSettings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        names = (*_ALWAYS_PASSED, *settings.environment)
        self._environ = {name: environ[name] for name in names if name in environ}

    def refusal(self, pool: str) -> str:
        """Why this pool is not to be changed; empty: it may be."""
        if pool.startswith("-"):
            return f"pool {pool} looks like an option of a program"
        if self._settings.pools and pool not in self._settings.pools:
            return f"pool {pool} is not in executor.command.pools"
        return ""

    def plan(self, advice: Recommendation) -> str:
        """The program and its arguments."""
        return f"would run {self._filled(advice)}"

    async def observe(self, pool: str) -> int | None:
        """What the program `observe` prints: a number and nothing else."""
        if not self._settings.observe:
            return None
        output = await self._run([part.replace("{pool}", pool) for part in self._settings.observe])
        if not (output.isascii() and output.isdigit() and len(output) < 10):
            raise ActionError(f"executor.command.observe printed {output[:80]!r}, not a number")
        return int(output)

    async def scale(self, advice: Recommendation) -> str:
        """Run the program `scale`; exit code 0 is success."""
        output = await self._run(self._filled(advice))
        return f"ran {self._filled(advice)}" + (f": {output}" if output else "")

    async def close(self) -> None:
        """Nothing is open between two calls."""

    def _filled(self, advice: Recommendation) -> list[str]:
        values = {
            "{pool}": advice.pool,
            "{replicas_from}": str(advice.replicas_from),
            "{replicas_to}": str(advice.replicas_to),
            "{recommendation_id}": advice.recommendation_id,
        }
        argv = []
        for part in self._settings.scale:
            filled = part
            for placeholder, value in values.items():
                filled = filled.replace(placeholder, value)
            argv.append(filled)
        return argv

    async def _run(self, argv: Sequence[str]) -> str:
        """What the program printed, its first 4 KiB.

        Raises:
            ActionError: it could not be started, or its exit code is not 0.
        """
        try:
            code, output = await run(argv, self._environ)
        except OSError as error:
            text = f"cannot run {argv[0]}: {reason(error)}"
            raise ActionError(text, has_acted=False) from None
        if code != 0:
            how = f"exit code {code}" if code > 0 else f"signal {_signal_name(-code)}"
            raise ActionError(f"{argv[0]} ended with {how}" + (f": {output}" if output else ""))
        return output


def _signal_name(number: int) -> str:
    """`SIGKILL`; real-time signals have but a number."""
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return str(number)


async def run(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[int, str]:
    """Run a program to its end; returns its exit code and the first 4 KiB that it printed."""
    loop, head, said_all = asyncio.get_running_loop(), bytearray(), asyncio.Event()
    read_end, write_end = os.pipe()

    def read() -> None:
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(read_end, 65536)
            head.extend(chunk[: OUTPUT_BYTES - len(head)])
            if not chunk:
                loop.remove_reader(read_end)
                said_all.set()

    os.set_blocking(read_end, False)
    loop.add_reader(read_end, read)
    try:
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,  # a pipe of asyncio's would make wait() wait for its last holder
                stderr=write_end,
                env=dict(environ),
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(write_end)
        try:
            code = await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            # Who has left the group may hold the pipe for ever.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(said_all.wait(), _LAST_WORDS_SECONDS)
    finally:
        loop.remove_reader(read_end)
        os.close(read_end)
    return code, printable(head.decode(errors="replace").strip())
