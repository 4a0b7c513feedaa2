"""A pool's load read back from recorded rollups, and back-tested."""

import asyncio
import json
import time

import pytest

from agent.bus import Bus
from agent.recorded_load import NoRecordError, read_pool, seconds_of
from schemas.metrics import Rollup, Summary
from schemas.units import SECOND_NS, instant
from tests.support.program import resource_agent

pytestmark = pytest.mark.bus

MINUTE_NS = 60 * SECOND_NS


def summary(mean: float) -> Summary:
    return Summary(min=mean, mean=mean, max=mean, p95=mean, count=1)


async def record(bus: Bus, loads: list[float | None], pool: str = "chat") -> int:
    """The last minutes of a pool of two engines; None: not recorded. Gives the first minute."""
    first = time.time_ns() // MINUTE_NS - len(loads)
    for minute, load in enumerate(loads, first):
        if load is None:
            continue
        rollup = Rollup(
            kind="pool",
            id=pool,
            pool=pool,
            minute_at=instant(minute * MINUTE_NS),
            metrics={
                "engines": summary(2.0),
                "engine_requests_running": summary(0.75 * load / 2),
                "engine_requests_waiting": summary(0.25 * load / 2),
                "engine_generation_tokens_per_second": summary(10 * load / 2),
            },
        )
        await bus.publish(rollup, message_id=f"rollup.pool.{pool}.{minute}")
    return first


async def test_a_pool_is_read_minute_by_minute_with_its_gaps(bus: Bus) -> None:
    first = await record(bus, [100.0, 120.0, None, 80.0])
    await record(bus, [7.0, 7.0], pool="other")

    read = await read_pool(bus, "chat", 3600.0)

    assert read.values == [100.0, 120.0, None, 80.0]
    assert read.times[0] == instant(first * MINUTE_NS).isoformat()


async def test_a_pool_that_is_not_there_is_told_with_those_that_are(bus: Bus) -> None:
    with pytest.raises(NoRecordError, match=r"no minute of pool x .*; there are no pools yet"):
        await read_pool(bus, "x", 3600.0)
    for number in range(22):
        await record(bus, [1.0], pool=f"p{number:02}")

    with pytest.raises(NoRecordError, match=r"; there are: p00, p01, .*, p19 and 2 others$"):
        await read_pool(bus, "x", 3600.0)


async def test_the_load_may_be_of_tokens(bus: Bus) -> None:
    await record(bus, [100.0, None, 80.0])

    read = await read_pool(bus, "chat", 3600.0, "generation_tokens_per_second")

    assert read.values == [1000.0, None, 800.0]
    with pytest.raises(NoRecordError, match="fewer than two say its prompt_tokens_per_second"):
        await read_pool(bus, "chat", 3600.0, "prompt_tokens_per_second")


async def test_a_foreign_message_among_the_rollups_is_passed_over(bus: Bus) -> None:
    await record(bus, [100.0, 120.0])
    await bus.publish_raw("rollup.pool.chat", b"not json", message_id="x")

    read = await read_pool(bus, "chat", 3600.0)

    assert read.values == [100.0, 120.0]


async def test_a_pool_that_was_not_recorded_is_refused(bus: Bus) -> None:
    await record(bus, [100.0])

    for pool in ("chat", "nobody"):
        with pytest.raises(NoRecordError, match=f"pool {pool}"):
            await read_pool(bus, pool, 3600.0)


async def test_the_command_back_tests_what_was_recorded(bus: Bus, nats_url: str) -> None:
    await record(bus, [100.0 + minute % 7 for minute in range(60)])
    arguments = ("--from-stream", "chat", "--since", "2h", "--capacity", "20", "--lead", "120")

    done = await asyncio.to_thread(
        resource_agent, "backtest", *arguments, "--nats-url", nats_url, "--json"
    )

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["series"], told["steps"], told["step_seconds"]) == ("pool chat, 2h", 60, 60.0)
    assert [row["policy"] for row in told["rows"]][:4] == ["ours", "hpa", "keda", "oracle"]


async def test_the_command_takes_the_load_that_is_named(bus: Bus, nats_url: str) -> None:
    await record(bus, [100.0 + minute % 7 for minute in range(30)])
    arguments = ("--from-stream", "chat", "--capacity", "200", "--lead", "120", "--policy", "hpa")

    done = await asyncio.to_thread(
        resource_agent, "backtest", *arguments, "--column", "generation_tokens_per_second",
        "--nats-url", nats_url, "--json",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["series"] == "pool chat, generation_tokens_per_second, 7d"
    # 1,000 tokens a second by 200 at 70 % are 8 replicas for 24 minutes, and some to start with.
    assert 8 * 24 / 60 <= told["rows"][0]["replica_hours"] <= 9 * 24 / 60


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("--column", "nope", "--column nope: a stream has requests_in_flight, prompt_tokens"),
        ("--step", "30", "--step 30: a stream has minutes"),
    ],
)
async def test_what_a_stream_has_not_is_refused(option: str, value: str, text: str) -> None:
    arguments = ("--from-stream", "chat", "--capacity", "1", "--lead", "120", option, value)

    done = await asyncio.to_thread(resource_agent, "backtest", *arguments)

    assert done.returncode == 2
    assert text in done.stderr.decode()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90m", 5400.0), ("12h", 43_200.0), ("7d", 604_800.0), ("1.5d", 129_600.0)],
)
def test_times_are_written_with_their_unit(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "0h", "7 d", "1w"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="90m"):
        seconds_of(text)


@pytest.mark.parametrize("name", ["*", ">", "a b", "chat.x"])
async def test_a_name_that_is_no_pool_reads_none(bus: Bus, nats_url: str, name: str) -> None:
    await record(bus, [100.0, 120.0, 80.0])
    await record(bus, [7.0, 7.0, 7.0], pool="other")
    arguments = ("--from-stream", name, "--capacity", "20", "--lead", "120")

    done = await asyncio.to_thread(
        resource_agent, "backtest", *arguments, "--nats-url", nats_url, "--json"
    )

    assert done.returncode == 2
    assert b"no minute of pool" in done.stderr


async def test_more_days_than_are_kept_are_refused() -> None:
    arguments = ("--from-stream", "chat", "--since", "9999999999d", "--capacity", "1", "--lead")

    done = await asyncio.to_thread(resource_agent, "backtest", *arguments, "120")

    assert done.returncode == 2
    assert b"--since 9999999999d: minutes are kept for 90 days" in done.stderr
