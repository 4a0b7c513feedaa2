"""Programs as executors: real processes, no shell, nothing left behind."""

import asyncio
import gc
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.executors.command import OUTPUT_BYTES, CommandTarget
from agent.executors.settings import CommandSettings, ExecutorSettings
from agent.executors.target import ActionError
from tests.support.advice import advice
from tests.support.waiting import until

ONE = advice(replicas_from=2, replicas_to=5)
PYTHON = (sys.executable, "-S", "-c")


def target(*scale: str, environ: dict[str, str] | None = None, **more: Any) -> CommandTarget:
    return CommandTarget(CommandSettings(scale=scale, **more), environ or {})


async def test_each_argument_stays_one_argument() -> None:
    show = (*PYTHON, "import sys; print(sys.argv[1:])")

    text = await target(*show, "{pool}", "a b; $(x)", "--to={replicas_to}").scale(ONE)

    assert text.endswith("['chat', 'a b; $(x)', '--to=5']")
    assert target("x", "{replicas_from}", "{recommendation_id}").plan(ONE) == (
        "would run ['x', '2', 'chat.scale_up.1']"
    )


async def test_few_variables_are_passed_on() -> None:
    environ = {"PATH": "/bin", "SECRET": "s", "KUBECONFIG": "k", "HOME": "/h"}
    show = (*PYTHON, "import os; print(sorted(set(os.environ) - {'LC_CTYPE'}))")

    text = await target(*show, environ=environ, environment=("KUBECONFIG", "NONE")).scale(ONE)

    assert text.endswith("['HOME', 'KUBECONFIG', 'PATH']")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("print('no quota'); raise SystemExit(3)", "ended with exit code 3: no quota"),
        ("import os; os.kill(os.getpid(), 9)", "ended with signal SIGKILL"),
        ("import os; os.kill(os.getpid(), 40)", "ended with signal 40"),
        ("import sys; print('\\x1b[31m', file=sys.stderr); sys.exit(1)", r"code 1: \\x1b\[31m"),
    ],
    ids=["exit-code", "signal", "real-time-signal", "terminal-codes"],
)
async def test_a_program_that_fails_says_how(code: str, why: str) -> None:
    with pytest.raises(ActionError, match=why):
        await target(*PYTHON, code).scale(ONE)


def test_a_program_that_is_not_there_is_named_and_leaves_nothing_open() -> None:
    with pytest.raises(ActionError, match="cannot run /no/such: No such file or directory"):
        asyncio.run(target("/no/such").scale(ONE))

    gc.collect()  # what is still open warns when it is collected, and warnings are errors


async def test_output_without_end_is_read_and_not_kept() -> None:
    text = await target(*PYTHON, "print('x' * 3_000_000)").scale(ONE)

    assert text.count("x") < OUTPUT_BYTES + 100


async def test_what_is_cut_off_is_gone_with_all_that_it_started(tmp_path: Path) -> None:
    both = tmp_path / "pids"
    code = (
        "import os, time\n"
        "child = os.fork()\n"
        f"open({str(both)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        "time.sleep(600)\n"
    )
    running = asyncio.create_task(target(*PYTHON, code).scale(ONE))
    await until(lambda: both.exists() and len(both.read_text().split()) == 2)

    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    await until(lambda: not any(_is_running(int(pid)) for pid in both.read_text().split()))


async def test_a_child_that_holds_the_output_open_does_not_hold_up_the_end(tmp_path: Path) -> None:
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        f"while not os.path.exists({str(tmp_path / 'pid')!r}): time.sleep(0.01)\n"
        "print('done')\n"
    )

    async with asyncio.timeout(30):
        text = await target(*PYTHON, code).scale(ONE)

    await until(lambda: bool((tmp_path / "pid").read_text()))
    os.kill(int((tmp_path / "pid").read_text()), 9)
    assert text.endswith(": done")


@pytest.mark.parametrize(
    ("printed", "seen"),
    [("7", 7), (" 12\\n", 12), ("", None), ("-1", None), ("3 pods", None), ("9" * 10, None)],
)
async def test_what_is_observed_is_a_number_and_nothing_else(
    printed: str, seen: int | None
) -> None:
    looks = target("true", observe=(*PYTHON, f"print('{printed}')"))

    if seen is not None:
        assert await looks.observe("chat") == seen
    else:
        with pytest.raises(ActionError, match=r"printed .*, not a number"):
            await looks.observe("chat")


async def test_without_a_program_to_look_nothing_is_known() -> None:
    assert await target("true").observe("chat") is None


def test_pools_that_are_not_listed_or_look_like_options_are_refused() -> None:
    assert target("true").refusal("chat") == ""
    assert target("true").refusal("-n") == "pool -n looks like an option of a program"
    assert target("true", pools=("code",)).refusal("chat").endswith("executor.command.pools")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (lambda: CommandSettings(scale=("x", "{replicas}")), r"scale has \{replicas\}; there are"),
        (lambda: CommandSettings(observe=("{replicas_to}",)), r"observe has \{replicas_to\}"),
        (lambda: ExecutorSettings(kind="command"), "needs executor.command.scale"),
        (lambda: ExecutorSettings(kind="kubernetes"), "needs executor.kubernetes.deployments"),
    ],
    ids=["placeholder", "placeholder-to-look", "no-program", "no-deployment"],
)
def test_settings_that_cannot_be_right_are_refused(settings: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        settings()


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
