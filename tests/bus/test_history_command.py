"""`resource-agent history` and the client's questions about time ranges, over a real server."""

import asyncio
import csv
import json
import math
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from agent.bus import Bus
from agent.client import ResourceAgent
from agent.sync_client import SyncResourceAgent
from handlers.queries.latest import LatestStore
from handlers.queries.service import query_endpoints
from handlers.settings import HandlersSettings
from schemas.engines import CacheMetrics
from schemas.protocols import RequestError
from schemas.spending import Opportunity
from schemas.units import instant
from tests.support.advice import advice, decision, tell
from tests.support.program import resource_agent
from tests.support.samples import engine, gpu, host
from tests.support.spending import record

pytestmark = pytest.mark.bus

WIRE = Path(__file__).parents[1] / "wire"
ALL = (
    "gpu", "system", "engine", "cache", "utilization", "waste", "trends", "opportunities",
    "consolidations", "advice",
)  # fmt: skip


async def handlers(bus: Bus) -> None:
    """Answers as a process does that has just been started: from the streams alone."""
    store, settings = LatestStore(60), HandlersSettings()
    endpoints = query_endpoints(store, bus, time.time_ns, settings, Counter())
    await bus.serve("handlers", endpoints, description="test")


@pytest.fixture
async def served(bus: Bus, nats_url: str) -> str:
    """A server with something of everything in its streams."""
    cache = CacheMetrics(
        instance="c1", namespace="default", observed_at=instant(time.time_ns()), entries=7
    )
    now = instant(time.time_ns())
    opportunity = (WIRE / "opportunity.json").read_bytes()
    for message in (
        gpu("g0", utilization_ratio=0.5, observed_at=now),
        host("n1", cpu=0.25, observed_at=now),
        msgspec.structs.replace(engine("e0", waiting=3), observed_at=now),
        cache,
        msgspec.json.decode(opportunity, type=Opportunity),
    ):
        payload = msgspec.json.encode(message)
        await bus.publish_raw(message.subject(), payload, message_id=message.subject())
    await record(bus, 24, every=20)
    given = advice(1)
    await tell(bus, given, decision(given, "rejected", reason="not now"))
    await handlers(bus)
    return nats_url


async def run(url: str, *arguments: object) -> tuple[int, str, str]:
    done = await asyncio.to_thread(resource_agent, "history", *arguments, "--nats-url", url)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def test_everything_has_a_table_that_fits_into_80_columns(served: str) -> None:
    shown = {}
    for what in ALL:
        code, out, err = await run(served, what, "--since", "2d")
        assert code == 0, err
        assert max(map(len, out.splitlines())) <= 80, out
        shown[what] = out

    assert "n1 g0" in shown["gpu"]
    assert "50 %" in shown["gpu"]
    assert "cpu_utilization_ratio" in shown["system"]
    assert "requests_waiting" in shown["engine"]
    assert "c1 default" in shown["cache"]
    assert "from rollups" in shown["waste"]
    assert "pool chat" in shown["waste"]
    assert "usd_per_hour" in shown["trends"]
    assert "saving_usd_per_month" in shown["opportunities"]
    assert "ann rejected it: not now" in shown["advice"]


async def test_programs_get_json_and_csv(served: str) -> None:
    waste = await run(served, "waste", "--since", "2d", "--pool", "chat", "--json")
    table = await run(served, "waste", "--since", "2d", "--pool", "chat", "--csv")
    given = await run(served, "advice", "--csv")

    assert (waste[0], table[0], given[0], waste[2], table[2]) == (0, 0, 0, "", "")
    rows = json.loads(waste[1])["rows"]
    lines = list(csv.DictReader(table[1].splitlines()))
    assert {row["id"] for row in rows} == {line["id"] for line in lines} == {"chat"}
    assert [row["values"]["gpu_hours"] for row in rows] == [
        float(line["gpu_hours"]) for line in lines
    ]
    assert next(csv.DictReader(given[1].splitlines()))["state"] == "rejected"


async def test_a_table_for_programs_that_lacks_something_says_so_beside_it(served: str) -> None:
    thinned = await run(served, "waste", "--since", "2d", "--pool", "chat", "--csv", "--limit", "3")
    nothing = await run(served, "waste", "--pool", "nowhere", "--csv")

    assert len(list(csv.DictReader(thinned[1].splitlines()))) == 3
    assert thinned[2].startswith("3 of ")
    assert "thinned evenly" in thinned[2]
    assert (nothing[0], nothing[1]) == (0, "")
    assert "no waste of pool 'nowhere' is recorded" in nothing[2]


async def test_a_chosen_metric_alone_is_shown(served: str) -> None:
    code, out, err = await run(served, "waste", "--since", "2d", "--metric", "gpu_hours")
    wrong = await run(served, "waste", "--since", "2d", "--metric", "nope")

    assert code == 0, err
    assert "gpu_hours" in out
    assert "usd_per_hour" not in out
    assert (wrong[0], "there is " in wrong[2]) == (2, True)


async def test_nothing_recorded_is_told_with_the_reason(served: str) -> None:
    code, out, _ = await run(served, "waste", "--pool", "nowhere")

    assert code == 0
    assert "no waste of pool 'nowhere' is recorded: there is none" in out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("gpus",), "gpus"),
        (("gpu", "--pool", "p"), "--pool is not for `history gpu`, which takes --node, --gpu"),
        (("waste", "--since", "7"), "write a time like"),
        (("waste", "--since", "91d"), "90 days"),
        (("waste", "--since", "1h", "--until", "2h"), "must be before --until 2h"),
        (("waste", "--since", "2126-01-01"), "must be before now"),
        (("waste", "--since", "0001-01-01T00:00+14:00"), "outside the years"),
        (("waste", "--until", "9999-12-31T23:00-14:00"), "outside the years"),
        (("waste", "--json", "--csv"), "give one of them"),
        (("waste", "--csv", "--metric", "usd"), "--metric is for the table"),
    ],
    ids=[
        *("what", "filter", "no unit", "too long", "turned round", "future"),
        *("before all years", "after all years", "two", "metric"),
    ],
)
async def test_wrong_usage_is_told_in_a_line(
    nats_url: str, arguments: tuple[str, ...], text: str
) -> None:
    code, _, err = await run(nats_url, *arguments)

    assert code == 2
    assert text in " ".join(err.split())


@pytest.mark.parametrize("seconds", [math.nan, math.inf])
async def test_a_client_sends_no_time_without_end(bus: Bus, seconds: float) -> None:
    with pytest.raises(RequestError, match=r"400 seconds: (nan|inf) is no finite number"):
        await ResourceAgent(bus).analysis_history("waste", seconds=seconds)


async def test_clients_ask_and_a_new_process_answers_the_same(served: str, bus: Bus) -> None:
    agent = ResourceAgent(bus)
    end = instant(time.time_ns())
    start = instant(time.time_ns() - 2 * 86_400 * 10**9)

    before = await agent.analysis_history("waste", pool="chat", start=start, end=end)
    await handlers(bus)
    after = await agent.analysis_history("waste", pool="chat", start=start, end=end)

    assert before == after
    assert len(before.rows) >= 24
    assert (await agent.cache_history(instance="c1")).samples[0].values == {"entries": 7.0}
    assert (await agent.advice_history(pool="chat")).rows[0].state == "rejected"

    def ask() -> tuple[int, int, int]:
        with SyncResourceAgent.connect(served) as fleet:
            return (
                fleet.analysis_history("waste", pool="chat", start=start, end=end).matched,
                fleet.cache_history().matched,
                fleet.advice_history().matched,
            )

    assert await asyncio.to_thread(ask) == (before.matched, 1, 1)
