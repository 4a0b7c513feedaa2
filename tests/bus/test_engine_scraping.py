"""Engines scraped from real sockets onto a real bus: what comes, what stops, what may change."""

import asyncio
import contextlib
import functools
import re
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from agent.bus import Bus
from agent.engine_settings import EnginesSettings, LocalTarget
from agent.scraping import EngineScraping
from schemas.engines import CacheMetrics, EngineMetrics
from schemas.message import Message
from schemas.metrics import GpuMetrics
from schemas.protocols import PublishError
from tests.support import waiting
from tests.support.metrics_server import MetricsServer, capture
from tests.support.wire import impostor

FAST: dict[str, Any] = {"interval_seconds": 0.1, "timeout_seconds": 30}
GIVES_UP: dict[str, Any] = {"timeout_seconds": 0.5}
until = functools.partial(waiting.until, seconds=30)
KINDS: dict[str, Any] = {"engine": EngineMetrics, "gpu": GpuMetrics, "cache": CacheMetrics}
KEY = "agent.engines.n1"


class Seen:
    """Everything published below `metrics.>`, by subject."""

    def __init__(self) -> None:
        self.of: dict[str, list[Any]] = {}

    def take(self, subject: str, payload: bytes) -> None:
        kind = KINDS[subject.split(".")[1]]
        self.of.setdefault(subject, []).append(msgspec.json.decode(payload, type=kind))

    def count(self, subject: str) -> int:
        return len(self.of.get(subject, ()))


Scrape = Callable[..., Awaitable[tuple[EngineScraping, Seen]]]


@pytest.fixture
async def scrape(bus: Bus) -> AsyncIterator[Scrape]:
    """Starts the scraping of targets; stopped at the end."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(*targets: LocalTarget | str, **options: Any) -> tuple[EngineScraping, Seen]:
            settings = EnginesSettings(targets=targets, **{**FAST, **options.pop("settings", {})})
            seen = Seen()
            await bus.subscribe("metrics.>", seen.take)
            scraping = EngineScraping(
                options.pop("publisher", bus),
                bus,
                settings,
                node="n1",
                pool=None,
                bucket=bus.names.bucket("config"),
                environ={},
                **options,
            )
            await stack.enter_async_context(scraping)
            return scraping, seen

        yield start


@pytest.fixture
async def server() -> AsyncIterator[MetricsServer]:
    server = MetricsServer(capture("vllm-0.9"))
    async with server.serve():
        yield server


def named(server: MetricsServer, name: str = "e", **fields: Any) -> LocalTarget:
    return LocalTarget(url=server.url, name=name, **fields)


def part(scraping: EngineScraping, name: str) -> tuple[str, str]:
    """State and text of one component."""
    return {c.name: (c.state, c.text) for c in scraping.components()}[name]


async def test_an_engine_is_published_every_interval_and_its_rates_from_the_second_page_on(
    server: MetricsServer, scrape: Scrape
) -> None:
    scraping, seen = await scrape(named(server))

    await until(lambda: seen.count("metrics.engine.n1.e") >= 3)

    first, second, *_ = seen.of["metrics.engine.n1.e"]
    assert (first.model, first.requests_running) == ("Qwen/Qwen3-8B", 42)
    assert first.generation_tokens_per_second is None
    assert second.generation_tokens_per_second == 0.0
    assert second.interval_seconds is not None
    assert 0 < second.interval_seconds < 30
    assert part(scraping, "engines") == ("ok", "1 by settings")
    state, text = part(scraping, "engine.e")
    assert (state, text) == ("ok", f"{server.url}: vllm: 1 reporting")


async def test_all_kinds_come_on_their_own_subjects(server: MetricsServer, scrape: Scrape) -> None:
    other = MetricsServer(capture("vllm-lmcache-0.5"))
    async with other.serve():
        server.body = capture("dcgm-exporter-4.4-mig")
        _, seen = await scrape(named(server, "dcgm", node="rack/7"), named(other, "q"))
        await until(lambda: len(seen.of) >= 4)

    assert {s.rpartition(".")[0] for s in seen.of} == {
        "metrics.engine.n1",
        "metrics.cache",
        "metrics.gpu.rack-7-" + seen_node(seen),
    }
    assert seen.of["metrics.cache.n1-q"][0].source == "lmcache"


def seen_node(seen: Seen) -> str:
    """The digest in the token of the node `rack/7`."""
    gpu = next(subject for subject in seen.of if ".gpu." in subject)
    return gpu.split(".")[2].removeprefix("rack-7-")


async def test_while_an_engine_is_away_nothing_is_published_and_health_says_why(
    scrape: Scrape,
) -> None:
    server = MetricsServer(capture("vllm-0.9"))
    with capture_logs() as logs:
        async with server.serve():
            scraping, seen = await scrape(named(server))
            await until(lambda: seen.count("metrics.engine.n1.e") >= 1)
        await until(lambda: "cannot connect" in part(scraping, "engine.e")[1])
        before, failures = seen.count("metrics.engine.n1.e"), failed(scraping)
        await until(lambda: failed(scraping) >= failures + 3)
        state, text = part(scraping, "engine.e")
        silent = seen.count("metrics.engine.n1.e") == before
        async with server.serve(port=server.port):
            await until(lambda: seen.count("metrics.engine.n1.e") > before)
            await until(lambda: part(scraping, "engine.e")[0] == "ok")
            again = seen.count("metrics.engine.n1.e") + 2
            await until(lambda: seen.count("metrics.engine.n1.e") >= again)
        first = told(logs)
        await until(lambda: len(told(logs)) > len(first))

    assert silent
    assert state == "degraded"
    # An instant: an age would be wrong as soon as it was said.
    said = (
        r".*cannot connect: Connection refused; last good scrape \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    )
    assert re.fullmatch(said, text)
    assert first[-1] == "engine_scrape_recovered"
    assert first.count("engine_scrape_recovered") == 1
    assert told(logs)[-1] == "engine_scrape_failed", "a second outage is told, too"


def told(logs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was logged of outages, in order."""
    return [line["event"] for line in logs if line["event"].startswith("engine_scrape_")]


def failed(scraping: EngineScraping) -> int:
    return scraping.counters["engine_scrape_failures_total"]


async def test_an_engine_that_was_never_there_says_so_and_is_logged_once(scrape: Scrape) -> None:
    async with impostor(lambda _reader, _writer: asyncio.sleep(0)) as port:
        pass
    with capture_logs() as logs:
        scraping, seen = await scrape(LocalTarget(url=f"http://127.0.0.1:{port}", name="e"))
        await until(lambda: failed(scraping) >= 5)

    assert part(scraping, "engine.e")[1].endswith("last good scrape never")
    assert seen.of == {}
    assert told(logs) == ["engine_scrape_failed"]


async def test_an_engine_that_hangs_delays_no_other(server: MetricsServer, scrape: Scrape) -> None:
    hung = MetricsServer()
    hung.answers.clear()
    async with hung.serve():
        scraping, seen = await scrape(named(hung, "hung"), named(server))
        await until(lambda: seen.count("metrics.engine.n1.e") >= 5)

        assert part(scraping, "engine.hung")[1].endswith("not scraped yet")


async def test_a_server_that_drips_is_given_up_at_the_deadline(scrape: Scrape) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        with contextlib.suppress(OSError):
            while True:
                writer.write(b"#")
                await writer.drain()
                await asyncio.sleep(0.02)

    async with impostor(drip) as port:
        target = LocalTarget(url=f"http://127.0.0.1:{port}", name="e")
        scraping, _ = await scrape(target, settings=GIVES_UP)
        await until(lambda: failed(scraping) >= 2)
        _, text = part(scraping, "engine.e")

    assert "no page within 0.5 s" in text


async def test_a_look_up_that_hangs_is_not_asked_again_and_again(
    server: MetricsServer, scrape: Scrape, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, calls = threading.Event(), Counter[str]()

    def hang(host: str, *_arguments: object, **_options: object) -> list[object]:
        calls[host] += 1
        released.wait(30)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("agent.collectors.engines.fetch.socket.getaddrinfo", hang)
    other = LocalTarget(url=f"http://127.0.0.1:{server.port}", name="e")
    try:
        dead = LocalTarget(url="http://dead.lab:1", name="dead")
        scraping, seen = await scrape(dead, other, settings=GIVES_UP)
        await until(lambda: "busy" in part(scraping, "engine.dead")[1])
        await until(lambda: seen.count("metrics.engine.n1.e") >= 5)
    finally:
        released.set()

    assert calls == {"dead.lab": 1}
    await until(lambda: "looked up" in part(scraping, "engine.dead")[1])


async def test_rubbish_is_counted_and_the_loop_lives(server: MetricsServer, scrape: Scrape) -> None:
    good = server.body
    scraping, seen = await scrape(named(server))
    await until(lambda: seen.count("metrics.engine.n1.e") >= 1)
    for body, text in (
        (b'vllm:num_requests_running{x="\xff"} 1\n', "not UTF-8"),
        (b"vllm:num_requests_running{", "not Prometheus text"),
        (b"node_load1 1\n", "no metrics of vLLM"),
        (b'vllm:time_to_first_token_seconds_bucket{le="x"} 1\n', "a bucket ends at 'x'"),
    ):
        server.body = body
        await until(lambda text=text: text in part(scraping, "engine.e")[1])  # type: ignore[misc]
    server.body, before = good, seen.count("metrics.engine.n1.e")

    await until(lambda: seen.count("metrics.engine.n1.e") > before)

    assert failed(scraping) >= 4
    assert part(scraping, "engine.e")[0] == "ok"


async def test_a_fault_of_ours_is_logged_counted_and_survived(
    server: MetricsServer, scrape: Scrape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "agent.collectors.engines.inference.split",
        lambda *_: [].pop(),
    )
    with capture_logs() as logs:
        scraping, _ = await scrape(named(server))
        await until(lambda: failed(scraping) >= 2)

    assert "IndexError, a fault of the agent" in part(scraping, "engine.e")[1]
    assert [(line["event"], line["exc_info"]) for line in logs] == [("engine_scrape_failed", True)]


class Unheard:
    """Publishes nothing: as long as nobody takes it."""

    def __init__(self, bus: Bus) -> None:
        self.is_heard = False
        self._bus = bus

    async def publish(self, message: Message) -> None:
        if not self.is_heard:
            raise PublishError("no server")
        await self._bus.publish(message)


async def test_what_cannot_be_published_is_told_and_the_loop_lives(
    bus: Bus, server: MetricsServer, scrape: Scrape
) -> None:
    publisher = Unheard(bus)
    scraping, seen = await scrape(named(server), publisher=publisher)
    await until(lambda: "no server" in part(scraping, "engine.e")[1])

    publisher.is_heard = True

    await until(lambda: seen.count("metrics.engine.n1.e") >= 1)
    await until(lambda: part(scraping, "engine.e")[0] == "ok")


async def test_missing_metrics_are_warned_of_once_and_counted(
    server: MetricsServer, scrape: Scrape
) -> None:
    server.body = capture("vllm-0.6")
    with capture_logs() as logs:
        scraping, seen = await scrape(named(server))
        await until(lambda: seen.count("metrics.engine.n1.e") >= 3)

    (warning,) = [line for line in logs if line["event"] == "engine_metrics_missing"]
    assert warning["fields"]["vllm.queue_time"] == ["vllm:request_queue_time_seconds"]
    assert scraping.counters["engine_missing_metrics_total"] == 3
    assert part(scraping, "engine.e")[1].endswith("vllm: 1 reporting, 3 metrics missing")


async def test_a_restart_is_counted(server: MetricsServer, scrape: Scrape) -> None:
    scraping, seen = await scrape(named(server))
    await until(lambda: seen.count("metrics.engine.n1.e") >= 2)
    server.body = server.body.replace(b"} 41207.0", b"} 1.0")

    await until(lambda: scraping.counters["engine_restarts_total"] == 1)
    before = seen.count("metrics.engine.n1.e")
    await until(lambda: seen.count("metrics.engine.n1.e") > before + 1)

    assert scraping.counters["engine_restarts_total"] == 1


async def test_a_gpu_that_this_agent_measures_itself_is_not_published_twice(
    server: MetricsServer, scrape: Scrape
) -> None:
    server.body = capture("dcgm-exporter-4.4")
    own = "GPU-5c9f2f0e-8d2b-4f6e-a2a1-3b0f1d7e9a21"

    scraping, seen = await scrape(named(server), local_gpus=lambda: frozenset({own}))
    await until(lambda: len(seen.of) >= 1)

    assert [subject.rpartition(".")[2][:8] for subject in seen.of] == ["GPU-77aa"]
    assert scraping.counters["engine_gpus_skipped_total"] >= 1


async def test_the_labels_of_this_machine_say_nothing_of_gpus_elsewhere(
    server: MetricsServer, scrape: Scrape
) -> None:
    server.body = capture("dcgm-exporter-4.4")
    targets = named(server, "here"), named(server, "there", node="n2")

    _, seen = await scrape(*targets, labels={"capacity": "spot"})
    await until(lambda: len(seen.of) >= 4)

    labels = {(one.node, *one.labels.items()) for found in seen.of.values() for one in found}
    assert labels == {("n1", ("capacity", "spot")), ("n2",)}


async def test_a_secret_of_the_query_is_sent_but_never_said(
    server: MetricsServer, scrape: Scrape
) -> None:
    server.status = "500 Oops"
    with capture_logs() as logs:
        scraping, _ = await scrape(LocalTarget(url=f"{server.url}?key=s3cret", name="e"))
        await until(lambda: failed(scraping) >= 1)

    assert "GET /metrics?key=s3cret " in server.requests[0]
    assert "s3cret" not in f"{logs} {scraping.components()}"


# --- the bucket fleet-config ---------------------------------------------------------------------


def targets(*servers: MetricsServer) -> bytes:
    named = [{"url": s.url, "name": f"b{index}"} for index, s in enumerate(servers)]
    return msgspec.json.encode({"targets": named})


async def test_targets_of_the_bucket_replace_those_of_the_settings_until_removed(
    bus: Bus, server: MetricsServer, scrape: Scrape
) -> None:
    scraping, seen = await scrape(named(server, "local"))
    await until(lambda: seen.count("metrics.engine.n1.local") >= 1)

    revision = await bus.bucket("config").put(KEY, targets(server))
    await until(lambda: seen.count("metrics.engine.n1.b0") >= 1)
    by_bucket = [c.name for c in scraping.components()], part(scraping, "engines")
    await bus.bucket("config").delete(KEY)
    await until(lambda: part(scraping, "engines") == ("ok", "1 by settings"))
    before = seen.count("metrics.engine.n1.local")
    await until(lambda: seen.count("metrics.engine.n1.local") > before)

    assert by_bucket == (
        ["engines", "engine.b0"], ("ok", f"1 by fleet-config, revision {revision}"),
    )  # fmt: skip


async def test_targets_in_the_bucket_before_the_start_are_used(
    bus: Bus, server: MetricsServer, scrape: Scrape
) -> None:
    await bus.bucket("config").put(KEY, targets(server))
    await bus.bucket("config").put("agent.engines.n2", b"not ours")

    scraping, seen = await scrape()
    await until(lambda: seen.count("metrics.engine.n1.b0") >= 1)

    assert scraping.counters["engine_config_refused_total"] == 0


async def test_a_bad_value_is_refused_clearly_and_the_old_targets_stay(
    bus: Bus, server: MetricsServer, scrape: Scrape
) -> None:
    scraping, seen = await scrape()
    await bus.bucket("config").put(KEY, targets(server))
    await until(lambda: seen.count("metrics.engine.n1.b0") >= 1)

    with capture_logs() as logs:
        await bus.bucket("config").put(KEY, b'{"targets": [{"url": "file:///etc/shadow"}]}')
        await until(lambda: scraping.counters["engine_config_refused_total"] == 1)
    refused = part(scraping, "engines")
    before = seen.count("metrics.engine.n1.b0")
    await until(lambda: seen.count("metrics.engine.n1.b0") > before)
    await bus.bucket("config").put(KEY, targets(server, server))
    await until(lambda: seen.count("metrics.engine.n1.b1") >= 1)

    assert refused[0] == "degraded"
    assert "revision 2 refused: 'file:///etc/shadow' must look like" in refused[1]
    assert "still 1 by fleet-config, revision 1" in refused[1]
    (line,) = [line for line in logs if line["event"] == "engine_config_refused"]
    assert (line["revision"], line["log_level"]) == (2, "error")
    assert part(scraping, "engines")[0] == "ok"


async def test_a_target_that_stays_is_not_disturbed_by_a_change_of_the_list(
    bus: Bus, server: MetricsServer, scrape: Scrape
) -> None:
    _, seen = await scrape()
    other = MetricsServer(capture("sglang-0.4"))
    async with other.serve():
        await bus.bucket("config").put(KEY, targets(server))
        await until(lambda: seen.count("metrics.engine.n1.b0") >= 2)
        await bus.bucket("config").put(KEY, targets(server, other))
        await until(lambda: seen.count("metrics.engine.n1.b1") >= 1)

    rates = [m.generation_tokens_per_second for m in seen.of["metrics.engine.n1.b0"]]
    assert rates == [None, *[0.0] * (len(rates) - 1)], "its counters were never forgotten"


async def test_no_thread_or_task_outlives_the_scraping(
    bus: Bus, server: MetricsServer, scrape: Scrape
) -> None:
    hung = MetricsServer()
    hung.answers.clear()
    tasks = len(asyncio.all_tasks())
    async with hung.serve():
        settings = EnginesSettings(targets=(named(server), named(hung, "hung")), **FAST)
        async with EngineScraping(
            bus, bus, settings, node="n1", pool=None, bucket="fleet-config", environ={}
        ) as scraping:
            await until(lambda: part(scraping, "engine.e")[1].endswith("reporting"))
            await until(lambda: bool(hung.requests))

    await until(lambda: len(asyncio.all_tasks()) <= tasks)
    await until(lambda: not [t for t in threading.enumerate() if t.name.startswith("engine-")])
