"""A trace played against a cache on a real bus."""

import csv
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from agent.bus import Bus
from agent.client import CacheClient
from agent.replay.figures import ALL
from agent.replay.report import summarize, write_csv, write_html
from agent.replay.run import Replay, ReplayOptions
from agent.replay.trace import Trace, TraceRequest
from schemas.api import ArchiveStatus
from schemas.protocols import RequestError
from tests.support import archive_service, cache_service
from tests.support.waiting import until_async

ROOT = TraceRequest(0.0, ("a", "b"), "chat")
LONGER = TraceRequest(0.0, ("a", "b", "c"), "chat")
OTHER = TraceRequest(0.0, ("x",), "agent")


def played(bus: Bus, *requests: TraceRequest, **options: object) -> Replay:
    chosen = {"clients": 1, "value_bytes": 64, **options}
    return Replay([bus], Trace("test", list(requests)), ReplayOptions(**chosen))  # type: ignore[arg-type]


async def test_hits_are_prefix_hits_by_class_and_in_all(bus: Bus) -> None:
    async with cache_service.running(bus, archive_mode="off"):
        replay = played(bus, ROOT, LONGER, OTHER, LONGER)
        await replay.run()

    summary = summarize(replay)
    chat, agent = summary.classes["chat"], summary.classes["agent"]
    assert summary.classes[ALL].blocks == 9
    assert summary.classes[ALL].block_hit_ratio == pytest.approx(5 / 9)
    assert chat.block_hit_ratio == pytest.approx(5 / 8)
    assert chat.request_hit_ratio == pytest.approx(2 / 3)
    assert (agent.block_hit_ratio, chat.requests_whole) == (0.0, 1)
    assert [chat.latency[name].count for name in ("match", "get", "put")] == [3, 2, 2]
    assert (summary.errors, summary.wrong_values, summary.blocks_not_kept) == ({}, 0, 0)


async def test_each_block_is_put_as_the_child_of_the_one_before(bus: Bus) -> None:
    async with cache_service.running(bus, archive_mode="off"):
        await played(bus, ROOT, LONGER, key_prefix="p-").run()
        client = cache_service.Client(bus)
        parents = [(await client.meta(f"p-{block}")).parent for block in "abc"]

    assert parents == [None, "p-a", "p-b"]


async def test_a_hole_in_a_chain_ends_its_prefix(bus: Bus) -> None:
    async with cache_service.running(bus, archive_mode="off"):
        client = cache_service.Client(bus)
        replay = played(bus, ROOT, key_prefix="p-")
        await client.put("p-b", b"of another time")
        await replay.run()

    assert summarize(replay).classes[ALL].block_hit_ratio == 0.0


async def test_a_value_that_is_not_what_was_put_is_counted(bus: Bus) -> None:
    async with cache_service.running(bus, archive_mode="off"):
        client = cache_service.Client(bus)
        replay = played(bus, ROOT, key_prefix="p-")
        await client.put("p-a", b"forged")
        await replay.run()

    assert summarize(replay).wrong_values == 1


async def test_evictions_are_those_of_the_replay(bus: Bus) -> None:
    many = [TraceRequest(0.0, (f"k{number}",), "chat") for number in range(30)]
    async with cache_service.running(bus, archive_mode="off"):
        before = played(bus, *many, value_bytes=100_000)
        await before.run()
        replay = played(bus, *many[:5], value_bytes=100_000)
        await replay.run()

    assert summarize(replay).cache.evictions == 5
    assert summarize(replay).cache.archived is None


async def test_archived_are_entries_and_no_deletions(bus: Bus, tmp_path: Path) -> None:
    many = [TraceRequest(0.0, (f"k{number}",), "chat") for number in range(30)]
    client = CacheClient(bus)

    async def status() -> ArchiveStatus:
        answer = await bus.request("api.archive.status.default", timeout_seconds=5)
        return msgspec.json.decode(answer.payload, type=ArchiveStatus)

    async def is_at_rest() -> bool:
        stats = await client.stats()
        return stats.evictions > 0 and not stats.outbox_entries

    async def has_counted_a_tombstone() -> bool:
        now = await status()
        return 0 < now.tombstones <= now.stored_total - now.entries

    async with (
        archive_service.archiving(bus, tmp_path),
        cache_service.running(bus) as service,
    ):
        await cache_service.synced(service)
        await client.put_many({f"before-{number}": bytes(400_000) for number in range(4)})
        await until_async(is_at_rest)
        before = await status()
        replay = played(bus, *many, value_bytes=100_000)
        await replay.run()
        await client.put_many(dict.fromkeys(("gone-1", "gone-2"), bytes(400_000)))
        await until_async(is_at_rest)
        await client.delete_tag("a tombstone, and no entry")
        await until_async(has_counted_a_tombstone)
        await replay._sample()
        after = await status()

    archived = summarize(replay).cache.archived
    assert archived == after.entries - before.entries
    assert archived > 20
    assert before.entries > 0
    assert after.stored_total - before.stored_total > archived


async def test_the_time_of_the_trace_is_kept_at_its_speed(bus: Bus) -> None:
    apart = [TraceRequest(10.0 + number, ("a",), "chat") for number in range(3)]
    async with cache_service.running(bus, archive_mode="off"):
        replay = played(bus, *apart, speed=10.0)
        await replay.run()

    assert replay.figures.samples[-1].elapsed_seconds >= 0.2


async def test_a_cache_that_is_not_there_ends_it_with_the_reason(bus: Bus) -> None:
    replay = played(bus, *[ROOT] * 60)

    with pytest.raises(RequestError, match="nobody serves"):
        await replay.run()

    assert replay.figures.errors.total() == 50


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]


async def test_csv_and_page_hold_what_was_measured(bus: Bus, tmp_path: Path) -> None:
    async with cache_service.running(bus, archive_mode="off"):
        replay = played(bus, ROOT, LONGER, OTHER)
        await replay.run()
    write_csv(replay, tmp_path / "out.csv")
    write_html(replay, tmp_path / "out.html")

    with (tmp_path / "out.csv").open() as opened:
        rows = list(csv.DictReader(opened))
    last = {row["class"]: row for row in rows[-3:]}
    page = _Page()
    page.feed((tmp_path / "out.html").read_text())
    assert (last[ALL]["blocks"], last[ALL]["blocks_hit"]) == ("6", "2")
    assert (last["agent"]["requests"], last["agent"]["evictions"]) == ("1", "")
    assert page.tags.count("svg") == 4
    assert "script" not in page.tags
    assert page.addresses == []
