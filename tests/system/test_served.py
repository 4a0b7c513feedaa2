"""Everything the catalog promises is served, nothing else is, and bad input harms nobody."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta

import msgspec
import pytest

from agent import catalog
from agent.bus import Bus, connect
from agent.catalog import EVENTS, EndpointSpec
from schemas.api import HealthReply
from schemas.lifecycle import ROLES
from schemas.message import Message
from schemas.protocols import PublishError, RequestError
from schemas.views import GPU_VIEWS, SYSTEM_VIEWS
from tests.support.hostile import (
    NO_JSON_OBJECT,
    is_readable,
    real_message,
    with_one_wrong_field,
)
from tests.support.program import DEADLINE_SECONDS, ROOT, Up, running_up
from tests.support.waiting import until_async

NODE = "n1"
JSON_ENDPOINTS = [spec for spec in catalog.endpoints() if spec.request is not None]


def needed(spec: EndpointSpec) -> list[str]:
    """The fields of its request that have no default."""
    assert spec.request is not None
    return [field.encode_name for field in msgspec.structs.fields(spec.request) if field.required]


WITHOUT_DEFAULTS = [spec for spec in JSON_ENDPOINTS if needed(spec)]
WITH_DEFAULTS = [spec for spec in JSON_ENDPOINTS if not needed(spec)]
NESTED = b'{"a":' * 2000
"""Deeper than the decoder goes: a RecursionError, unlike all else that does not decode."""
KEY_OPERATIONS = ("get", "delete", "exists", "meta")


def logged_again_within_a_minute(up: Up) -> list[str]:
    """Subjects whose bad messages were logged twice by one connection within a minute."""
    last: dict[tuple[str, str], datetime] = {}
    again = []
    for line in up.stderr.splitlines():
        if '"event": "bad_message"' not in line:
            continue
        entry = json.loads(line)
        at = datetime.fromisoformat(entry["timestamp"])
        before = last.get((entry["bus"], entry["subject"]))
        if before is not None and at - before < timedelta(seconds=59):
            again.append(entry["subject"])
        last[entry["bus"], entry["subject"]] = at
    return again


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(
        tmp_path_factory.mktemp("up"),
        *("--node", NODE, "--simulate-gpus", "2xH100", "--simulate-engines", "2"),
        agent__interval_seconds=0.5,
    ) as running:
        yield running


@pytest.fixture
async def up_bus(up: Up) -> AsyncIterator[Bus]:
    async with await connect(up.url, name="test") as connected:
        yield connected


def names_of(spec: EndpointSpec) -> tuple[str, ...]:
    """What `{name}` stands for in the subject of this endpoint."""
    group = spec.subject.split(".")[1]
    return tuple(
        {"health": catalog.HEALTH, "gpu": GPU_VIEWS, "system": SYSTEM_VIEWS}.get(group, ())
    )


def subjects(spec: EndpointSpec, *, wildcard: str) -> set[str]:
    """The subjects below the root at which this installation should serve it.

    `wildcard` stands where the service itself takes any token.
    """
    subject = spec.subject
    if subject.startswith("api.archive.") or ".history." in subject:
        subject = subject.replace("{namespace}", wildcard).replace("{node}", wildcard)
    subject = subject.replace("{namespace}", "default").replace("{node}", NODE)
    subject = subject.replace("{instance}", NODE)
    return {
        subject.replace("{name}", name).replace("{role}", role)
        for name in names_of(spec) or ("",)
        for role in ROLES
    }


def one_subject(spec: EndpointSpec) -> str:
    return min(subjects(spec, wildcard="default" if "archive" in spec.subject else NODE))


async def test_what_is_served_is_what_the_catalog_says(up_bus: Bus) -> None:
    answers = await up_bus.gather("$SRV.INFO", wait_seconds=0.5)

    infos = [json.loads(answer.payload) for answer in answers]
    served = {
        endpoint["subject"].removeprefix("fleet.v1.")
        for info in infos
        for endpoint in info["endpoints"]
    }
    promised = set().union(*(subjects(spec, wildcard="*") for spec in catalog.endpoints()))
    assert sorted(info["name"] for info in infos) == [f"fleet-{role}" for role in sorted(ROLES)]
    assert all(info["description"] for info in infos)
    assert served == promised


@pytest.mark.parametrize("spec", WITHOUT_DEFAULTS, ids=lambda spec: spec.subject)
async def test_a_field_that_is_needed_is_named(up_bus: Bus, spec: EndpointSpec) -> None:
    with pytest.raises(RequestError, match=f"`{needed(spec)[0]}`") as missing:
        await up_bus.request(one_subject(spec), timeout_seconds=DEADLINE_SECONDS)

    assert missing.value.code == 400


@pytest.mark.parametrize("spec", WITH_DEFAULTS, ids=lambda spec: spec.subject)
async def test_an_empty_request_is_answered_and_an_unknown_field_refused_by_name(
    up_bus: Bus, spec: EndpointSpec
) -> None:
    assert spec.reply is not None
    subject = one_subject(spec)

    answer = await up_bus.request(subject, timeout_seconds=DEADLINE_SECONDS)
    with pytest.raises(RequestError, match="nonsense") as unknown:
        await up_bus.request(subject, b'{"nonsense": 1}', timeout_seconds=DEADLINE_SECONDS)
    with pytest.raises(RequestError) as undecodable:
        await up_bus.request(subject, b"\xff{", timeout_seconds=DEADLINE_SECONDS)

    msgspec.json.decode(answer.payload, type=spec.reply)
    assert (unknown.value.code, undecodable.value.code) == (400, 400)


@pytest.mark.parametrize("operation", KEY_OPERATIONS)
@pytest.mark.parametrize("key", [b"", b"\xff\xfe", b"k" * 10_241], ids=["empty", "utf-8", "long"])
async def test_a_key_that_is_none_is_refused(up_bus: Bus, operation: str, key: bytes) -> None:
    with pytest.raises(RequestError) as refused:
        await up_bus.request(f"cache.default.{operation}", key, timeout_seconds=DEADLINE_SECONDS)

    assert refused.value.code in (400, 413)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Fleet-Key": "%zz"},
        {"Fleet-Key": "k", "Fleet-Ttl-Seconds": "soon"},
        {"Fleet-Key": "k", "Fleet-Meta": "%5B1%5D"},
        {"Fleet-Key": "k", "Fleet-Prefix-Tokens": "-1"},
    ],
    ids=["no-key", "bad-escape", "ttl", "meta", "tokens"],
)
async def test_a_put_with_wrong_headers_is_refused(up_bus: Bus, headers: dict[str, str]) -> None:
    with pytest.raises(RequestError) as refused:
        await up_bus.request(
            "cache.default.put", b"value", headers, timeout_seconds=DEADLINE_SECONDS
        )

    assert refused.value.code == 400


async def counters(bus: Bus, role: str) -> dict[str, float]:
    answer = await bus.request(
        f"api.health.detailed.{role}.{NODE}", timeout_seconds=DEADLINE_SECONDS
    )
    (instance,) = msgspec.json.decode(answer.payload, type=HealthReply).instances
    return instance.record.counters


async def counted(bus: Bus, name: str) -> float:
    """The counter `name`, over all services."""
    return sum([(await counters(bus, role)).get(name, 0) for role in ROLES])


async def test_every_counter_that_the_operators_are_told_of_is_there_from_the_start(
    up_bus: Bus,
) -> None:
    page = (ROOT / "docs/operations.md").read_text()
    table = page.partition("## Counters worth an alert")[2].partition("\n## ")[0]
    named = set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))

    there = {name for role in ROLES for name in await counters(up_bus, role)}

    assert len(named) > 30
    assert named - there == set()


async def code_of(bus: Bus, subject: str, payload: bytes) -> int | None:
    """With which code the request was refused; None: it was not."""
    try:
        await bus.request(subject, payload, timeout_seconds=DEADLINE_SECONDS)
    except RequestError as error:
        return error.code
    return None


@pytest.mark.parametrize("spec", list(catalog.endpoints()), ids=lambda spec: spec.subject)
async def test_whatever_is_asked_of_an_endpoint_is_refused_counted_and_survived(
    up_bus: Bus, spec: EndpointSpec
) -> None:
    harmless: set[int | None] = {400}
    if spec.request is None:
        # Bytes may well be a key; of uploads and ranges there is none of that name.
        harmless = {400, 404, 409, 413, None}
    before = await counted(up_bus, "bus_bad_messages_total")

    codes = {
        what: await code_of(up_bus, one_subject(spec), payload)
        for what, payload in NO_JSON_OBJECT.items()
    }

    after = await counted(up_bus, "bus_bad_messages_total")
    assert {what: code for what, code in codes.items() if code not in harmless} == {}
    assert after - before == list(codes.values()).count(400)
    await still_works(up_bus)


@pytest.mark.parametrize(
    "kind",
    [kind for kind in EVENTS if kind.STREAM == "METRICS"],
    ids=lambda kind: kind.__name__,
)
async def test_bad_metrics_are_counted_and_the_handlers_live(
    up: Up, up_bus: Bus, kind: type[Message]
) -> None:
    subject = real_message(kind).subject()
    payloads = [*NO_JSON_OBJECT.values(), *with_one_wrong_field(kind)]
    bad = [payload for payload in payloads if not is_readable(kind, payload)]
    before = await counters(up_bus, "handlers")

    for payload in payloads:
        await up_bus.send(subject, payload)

    async def all_counted() -> bool:
        now = await counters(up_bus, "handlers")
        return now["undecodable_total"] == before.get("undecodable_total", 0) + len(bad)

    await until_async(all_counted, seconds=DEADLINE_SECONDS)
    await still_works(up_bus)
    await all_queries_answer(up_bus)
    after = await counters(up_bus, "handlers")
    assert len(payloads) > len(bad) > len(NO_JSON_OBJECT)
    assert after.get("handler_failures_total", 0) == after.get("unpublishable_total", 0) == 0
    assert up.stderr.count('"event": "bad_message"') > 0
    assert logged_again_within_a_minute(up) == []


async def test_bad_evictions_are_put_aside_and_the_archive_lives(up: Up, up_bus: Bus) -> None:
    bad: list[dict[str, str]] = [
        {},
        {"Fleet-Evicted": "%zz"},
        {"Fleet-Evicted": "%7B%22key%22%3A5%7D"},
        {"Fleet-Evicted": NESTED.decode()},
    ]
    for number, headers in enumerate(bad):
        await up_bus.publish_raw("evicted.default", b"?", headers, message_id=f"bad-{number}")

    async def all_dead() -> bool:
        return (await up_bus.stream_state("DEAD")).messages == len(bad)

    await until_async(all_dead)
    await still_works(up_bus)
    assert up.stderr.count('"event": "message_dead"') == 1  # a minute, however many
    counted = await counters(up_bus, "archive")
    assert counted["bus_dead_letters_total"] == len(bad)


@pytest.mark.parametrize(
    "kind",
    [kind for kind in EVENTS if kind.STREAM not in ("METRICS",)],
    ids=lambda kind: kind.__name__,
)
async def test_bad_events_harm_nobody(up_bus: Bus, kind: type[Message]) -> None:
    for payload in (*NO_JSON_OBJECT.values(), *with_one_wrong_field(kind)):
        await up_bus.send(real_message(kind).subject(), payload)

    await up_bus.round_trip_seconds(DEADLINE_SECONDS)
    await still_works(up_bus)
    await all_queries_answer(up_bus)


async def all_queries_answer(bus: Bus) -> None:
    for spec in WITH_DEFAULTS:
        if spec.reply is not None:
            answer = await bus.request(one_subject(spec), timeout_seconds=DEADLINE_SECONDS)
            msgspec.json.decode(answer.payload, type=spec.reply)


async def still_works(bus: Bus) -> None:
    """All services are ready; the cache takes and gives; metrics come."""
    heard = asyncio.Event()
    stop = await bus.subscribe(f"metrics.host.{NODE}", lambda *_: heard.set())
    for role in ROLES:
        answer = await bus.request(
            f"api.health.ready.{role}.{NODE}", timeout_seconds=DEADLINE_SECONDS
        )
        assert msgspec.json.decode(answer.payload, type=HealthReply).ready
    await bus.request(
        "cache.default.put", b"value", {"Fleet-Key": "k"}, timeout_seconds=DEADLINE_SECONDS
    )
    answer = await bus.request("cache.default.get", b"k", timeout_seconds=DEADLINE_SECONDS)
    assert answer.payload == b"value"
    async with asyncio.timeout(DEADLINE_SECONDS):
        await heard.wait()
    await stop()


async def test_no_stream_takes_requests_away(bus: Bus) -> None:
    for spec in catalog.endpoints():
        subject = spec.subject.replace("{", "").replace("}", "")
        with pytest.raises(PublishError, match="no stream keeps"):
            await bus.publish_raw(subject, b"", message_id="1")
