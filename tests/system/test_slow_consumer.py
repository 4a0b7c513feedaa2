"""A service that stands still is cut off by the server, and catches up once it moves again."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.bus import Bus, connect, ensure_streams
from schemas.api import HealthReply
from schemas.protocols import RequestError
from tests.support.program import DEADLINE_SECONDS, ROOT, environment, in_thread
from tests.support.samples import engine
from tests.support.server import NatsServer
from tests.support.waiting import until, until_async

LITTLE_PATIENCE = 'max_pending: 2000000\nwrite_deadline: "2s"\n'
METRICS = 500
FLOOD_BYTES = 64 * 1024 * 1024
"""More than the sockets hold between server and service."""

pytestmark = pytest.mark.bus


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path / "server", LITTLE_PATIENCE)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def handlers(impatient: NatsServer, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(
            [
                *(sys.executable, "-m", "agent", "run", "handlers", "--instance", "h1"),
                *("--nats-url", impatient.url, "--state-dir", str(tmp_path / "state")),
            ],
            cwd=ROOT,
            env=environment(),
            stderr=log,
        ) as process,
    ):
        yield process
        process.send_signal(signal.SIGCONT)
        process.terminate()


async def counters(bus: Bus) -> dict[str, float] | None:
    """Those of the handlers; None while they are not ready."""
    with contextlib.suppress(RequestError):
        answer = await bus.request("api.health.detailed.handlers.h1", timeout_seconds=1)
        (instance,) = msgspec.json.decode(answer.payload, type=HealthReply).instances
        return instance.record.counters if instance.ready else None
    return None


async def test_a_service_that_stood_still_is_cut_off_and_then_misses_nothing(
    impatient: NatsServer, handlers: "subprocess.Popen[bytes]"
) -> None:
    async with await connect(impatient.url, name="test") as bus:
        await ensure_streams(bus)

        async def is_ready() -> bool:
            return await counters(bus) is not None

        async def has_caught_up() -> bool:
            now = await counters(bus)
            return now is not None and now.get("messages_total") == METRICS

        await until_async(is_ready, seconds=DEADLINE_SECONDS)

        handlers.send_signal(signal.SIGSTOP)
        await in_thread(os.waitpid, handlers.pid, os.WUNTRACED)
        for number in range(METRICS):
            await bus.publish(engine(f"e{number}"))
        for _ in range(FLOOD_BYTES // 1_000_000):
            await bus.send("api.analysis.utilization", b"x" * 1_000_000)
            await bus.round_trip_seconds(DEADLINE_SECONDS)
        log = impatient.folder / "server.log"
        await until(lambda: "Slow Consumer Detected" in log.read_text(), seconds=DEADLINE_SECONDS)
        handlers.send_signal(signal.SIGCONT)
        await until_async(has_caught_up, seconds=DEADLINE_SECONDS)

        after = await counters(bus)
    assert after is not None
    assert after["bus_reconnects_total"] >= 1
