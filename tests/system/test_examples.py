"""The examples run as they are, against real streams; the orchestrator survives kill -9."""

import asyncio
import contextlib
import json
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import NotFoundError

from agent.bus import Bus
from schemas.engines import EngineMetrics
from schemas.scaling import Decision, Execution, Recommendation
from tests.support.cache_service import running as running_cache
from tests.support.examples import advice, example

SECONDS = 20.0
LOOK_SECONDS = 0.01
ACK_WAIT_SECONDS = 0.3
KILLS = 10


def with_user(url: str) -> str:
    """`url` with a user; a server without users takes any."""
    return url.replace("nats://", "nats://orchestrator:secret@")


async def publish(bus: Bus, *advices: Recommendation) -> None:
    for one in advices:
        await bus.publish(one, message_id=one.recommendation_id)


async def events(bus: Bus, *kinds: type[Decision] | type[Execution]) -> list[Any]:
    """What the stream holds of these kinds, in order."""
    found = []
    async for delivery in bus.read("RECOMMENDATIONS"):
        for kind in kinds:
            if delivery.subject.startswith(kind.SUBJECT.split(".{")[0]):
                found.append(msgspec.json.decode(delivery.payload, type=kind))
    return found


async def settled(bus: Bus) -> None:
    """Return once all advice there is has been acknowledged."""
    async with asyncio.timeout(SECONDS):
        while True:
            with contextlib.suppress(NotFoundError):  # it has not made its consumer yet
                info = await bus.jetstream.consumer_info("FLEET_RECOMMENDATIONS", "orchestrator")
                if info.num_pending == 0 and info.num_ack_pending == 0:
                    return
            await asyncio.sleep(LOOK_SECONDS)


@pytest.fixture
async def impatient(bus: Bus) -> None:
    """The orchestrator's consumer, from which unfinished work comes again soon."""
    await bus.jetstream.add_consumer(
        "FLEET_RECOMMENDATIONS",
        config=ConsumerConfig(
            durable_name="orchestrator",
            filter_subject="fleet.v1.recommendation.>",
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_SECONDS,
            max_ack_pending=1,
        ),
    )


async def test_published_metrics_are_engine_metrics(bus: Bus, tmp_path: Path) -> None:
    heard: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
    await bus.subscribe("metrics.>", lambda *message: heard.put_nowait(message))

    with example("publish_metrics", bus.url, tmp_path, "--pool", "chat", "--waiting", "7"):
        async with asyncio.timeout(SECONDS):
            subject, payload = await heard.get()

    metrics = msgspec.json.decode(payload, type=EngineMetrics)
    assert metrics.subject() == subject
    assert (metrics.pool, metrics.requests_waiting, metrics.simulated) == ("chat", 7, False)
    assert datetime.now(UTC) - metrics.observed_at < timedelta(seconds=10)


async def test_the_cache_client_puts_gets_and_deletes(bus: Bus, tmp_path: Path) -> None:
    async with running_cache(bus):
        with example("cache_client", bus.url, tmp_path) as client:
            out, err = await asyncio.to_thread(client.communicate, timeout=SECONDS)

    lines = out.decode().splitlines()
    assert client.returncode == 0, err.decode()
    assert [line.split()[0] for line in lines] == ["put", "get", "delete", "get"]
    assert "b'Paris.'" in lines[1]
    assert lines[2].endswith("existed: True")
    assert lines[3].split() == ["get", "None"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"simulated": True}, "the evidence is simulated"),
        ({"expires_at": datetime(2026, 1, 1, tzinfo=UTC)}, "expired"),
    ],
    ids=["simulated", "expired"],
)
async def test_the_orchestrator_refuses(
    bus: Bus, tmp_path: Path, fields: dict[str, Any], reason: str
) -> None:
    await publish(bus, advice(1, **fields))

    with example("orchestrator", with_user(bus.url), tmp_path):
        await settled(bus)

    (decision,) = await events(bus, Decision, Execution)
    assert (decision.verdict, decision.reason) == ("rejected", reason)
    assert decision.simulated == fields.get("simulated", False)
    assert not (tmp_path / "replicas.json").exists()


async def test_the_orchestrator_acts_on_simulated_advice_when_told_to(
    bus: Bus, tmp_path: Path
) -> None:
    await publish(bus, advice(1, simulated=True))

    with example("orchestrator", with_user(bus.url), tmp_path, "--allow-simulated"):
        await settled(bus)

    *_, last = await events(bus, Decision, Execution)
    assert (last.phase, last.replicas_before, last.replicas_after) == ("succeeded", 1, 2)
    assert (last.simulated, last.dry_run) == (True, False)
    assert json.loads((tmp_path / "replicas.json").read_text()) == {"chat": 2}


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff",
        b"[" * 100_000,
        b"[]",
        msgspec.json.encode(advice(1)).replace(b'"chat"', b'"a pool"'),
    ],
    ids=["not-text", "nested", "no-object", "no-token"],
)
async def test_what_is_no_advice_holds_up_none(bus: Bus, tmp_path: Path, payload: bytes) -> None:
    await bus.publish_raw("recommendation.scale_up.chat", payload, message_id="poison")
    await publish(bus, advice(2))

    with example("orchestrator", with_user(bus.url), tmp_path):
        await settled(bus)

    *_, last = await events(bus, Decision, Execution)
    assert last.phase == "succeeded"


async def test_the_orchestrator_reports_what_it_cannot_do(bus: Bus, tmp_path: Path) -> None:
    (tmp_path / "replicas.new").mkdir()  # where it would write
    await publish(bus, advice(1))

    with example("orchestrator", with_user(bus.url), tmp_path):
        await settled(bus)

    *_, last = await events(bus, Execution)
    assert last.phase == "failed"
    assert "replicas.new" in last.error


@pytest.mark.usefixtures("impatient")
async def test_an_orchestrator_killed_again_and_again_loses_nothing_and_does_nothing_twice(
    bus: Bus, tmp_path: Path
) -> None:
    chance = random.Random(7)  # where the kills fall still depends on the machine
    done: Counter[str] = Counter()
    await bus.subscribe("execution.>", lambda subject, _: done.update([subject]))
    sent = 0

    for _ in range(KILLS):
        await publish(bus, *(advice(number) for number in range(sent, sent + 3)))
        sent += 3
        before = done.total()
        with example("orchestrator", with_user(bus.url), tmp_path) as orchestrator:
            async with asyncio.timeout(SECONDS):
                while done.total() == before:  # it is in the middle of something
                    await asyncio.sleep(0)
            await asyncio.sleep(chance.uniform(0, 0.004))  # and goes on
            orchestrator.kill()
    with example("orchestrator", with_user(bus.url), tmp_path):
        await settled(bus)

    verdicts = Counter((d.recommendation_id, d.verdict) for d in await events(bus, Decision))
    phases = Counter((e.recommendation_id, e.phase) for e in await events(bus, Execution))
    names = [advice(number).recommendation_id for number in range(sent)]
    journal = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    succeeded = [e for e in await events(bus, Execution) if e.phase == "succeeded"]
    assert verdicts == Counter((name, "accepted") for name in names)
    assert phases == Counter(
        (name, phase) for name in names for phase in ("requested", "started", "succeeded")
    )
    assert [plan["key"] for plan in journal] == names
    assert [(e.replicas_before, e.replicas_after) for e in succeeded] == [
        (number, number + 1) for number in range(sent)
    ]
    assert json.loads((tmp_path / "replicas.json").read_text()) == {"chat": sent}


async def test_the_orchestrator_refuses_to_act_as_nobody(bus: Bus, tmp_path: Path) -> None:
    with example("orchestrator", bus.url, tmp_path) as orchestrator:
        _, err = await asyncio.to_thread(orchestrator.communicate, timeout=SECONDS)

    assert orchestrator.returncode == 1
    assert b"NATS_URL has no user" in err


async def test_without_a_server_the_cache_example_says_so(tmp_path: Path) -> None:
    with example("cache_client", "nats://127.0.0.1:9", tmp_path) as client:
        _, err = await asyncio.to_thread(client.communicate, timeout=SECONDS)

    assert client.returncode == 1
    assert err.startswith(b"error: no NATS server answers at nats://127.0.0.1:9")
