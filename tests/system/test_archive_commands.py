"""`resource-agent archive …` as a user types it, on a running installation."""

import asyncio
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.archive_client import TIMEOUT_SECONDS, ArchiveClient
from agent.bus import connect
from agent.client import CacheClient
from tests.support.program import Up, running_up
from tests.support.waiting import until_async

SMALL = {f"key-{number}": os.urandom(200_000) for number in range(12)}
LARGE = {"large": os.urandom(700_000)}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """With a cache of 1 MiB that has evicted most of what was put, and two dead letters."""
    with running_up(
        tmp_path_factory.mktemp("up"), "--node", "n1", "--no-live", cache__max_memory_mb=1
    ) as running:
        asyncio.run(fill(running))
        yield running


async def fill(up: Up) -> None:
    async with await connect(up.url, name="test") as bus:
        cache, archive = CacheClient(bus), ArchiveClient(bus)
        for key, value in {**LARGE, **SMALL}.items():
            await cache.put(key, value)
        for number, namespace in enumerate(("default", "default", "other")):
            await bus.publish_raw(f"evicted.{namespace}", b"", message_id=f"bad {number}")

        async def has_all() -> bool:
            status = await archive.status()
            evicted = (await cache.stats()).evictions
            others = [letter async for letter in ArchiveClient(bus, "other").dead()]
            return status.entries == evicted > 4 and status.dead_total == 2 and len(others) == 1

        await until_async(has_all, seconds=20)


def test_status_shows_what_is_there(up: Up) -> None:
    shown = up.command("archive status")
    status = json.loads(up.command("archive status", "--json").stdout)

    assert status["entries"] > 4
    assert f"entries           {status['entries']}" in shown.stdout.decode()
    assert status["dead_total"] == 2


def test_ls_lists_what_get_gives_back(up: Up, tmp_path: Path) -> None:
    listed = json.loads(up.command("archive ls", "--json").stdout)
    shown = up.command("archive ls", "key-", "--limit", 1)
    name, target = listed["entries"][0]["key"], tmp_path / "value"
    got = up.command("archive get", name, "--output", target, "--json")
    large = up.command("archive get", "large")

    assert not listed["more"]
    assert "large" in [entry["key"] for entry in listed["entries"]]
    assert json.loads(got.stdout)["found"]
    assert target.read_bytes() == {**LARGE, **SMALL}[name]
    assert large.stdout == LARGE["large"]
    assert "195.3 KiB" in shown.stdout.decode()
    assert "there are more: --after 'key-0'" in shown.stderr.decode()


def test_what_was_removed_is_gone(up: Up) -> None:
    removed = up.command("archive rm", "key-1", "--json")
    got = up.command("archive get", "key-1")
    cached = up.command("get", "key-1")

    assert json.loads(removed.stdout) == {"removed": ["key-1"]}
    assert (got.returncode, cached.returncode) == (1, 1)
    assert "no value for 'key-1' in namespace default" in got.stderr.decode()


def test_dead_letters_are_listed_sent_back_and_dropped(up: Up) -> None:
    letters = json.loads(up.command("archive dead", "--json").stdout)["letters"]
    shown = up.command("archive dead")
    alone = json.loads(up.command("archive dead", "-n", "other", "--json").stdout)["letters"]
    first, second, third = (str(letter["id"]) for letter in letters)
    done = up.command("archive dead", *("--retry", first), *("--drop", second, "--drop", "999"))
    one = json.loads(up.command("archive dead", "--drop", third, "--json").stdout)
    unknown = up.command("archive dead", "--drop", second, "--json")

    assert [letter["namespace"] for letter in letters] == ["default", "default", "other"]
    assert [str(letter["id"]) for letter in alone] == [third]
    assert shown.stdout.decode().count("no header Fleet-Evicted") == 3
    assert done.returncode == 1, "one was not there"
    assert done.stdout.decode().splitlines() == [
        f"{first}  sent back",
        f"{second}  dropped",
        "999  not found  no dead letter 999",
    ]
    assert "1 sent back, 1 dropped, 1 not found" in done.stderr.decode()
    assert one == {"letters": [{"id": int(third), "outcome": "dropped", "namespace": "other"}]}
    assert unknown.returncode == 1
    assert json.loads(unknown.stdout)["letters"][0]["outcome"] == "not found"


def test_one_letter_that_fails_stops_none_and_is_told(up: Up) -> None:
    async def bury() -> None:
        async with await connect(up.url, name="test") as bus:
            for cut in ({"Fleet-Dead-Cut": "1"}, {}):
                headers = {"Fleet-Dead-Subject": "fleet.v1.evicted.default", **cut}
                subject = "dead.FLEET_EVICTIONS.archiver"
                await bus.publish_raw(subject, b"x", headers, message_id=f"cut {cut}")

    asyncio.run(bury())
    letters = json.loads(up.command("archive dead", "--json").stdout)["letters"]
    cut, whole = letters[-2:]
    arguments = ("--retry", cut["id"], "--drop", whole["id"], "--json")
    done = up.command("archive dead", *arguments)
    failed, dropped = json.loads(done.stdout)["letters"]

    assert done.returncode == 1
    assert (failed["id"], failed["outcome"]) == (cut["id"], "failed")
    assert "cut" in failed["error"]
    assert (dropped["id"], dropped["outcome"]) == (whole["id"], "dropped")


def test_a_letter_is_sent_back_or_dropped(up: Up) -> None:
    done = up.command("archive dead", "--retry", 1, "--drop", 1)

    assert done.returncode == 2
    assert "either --retry or --drop 1, not both" in done.stderr.decode()


@pytest.mark.parametrize(
    ("command", "subject"),
    [
        ("status", "status.default"),
        ("get k", "restore.default"),
        ("dead", "dead"),
        ("sweep", "sweep"),
    ],
)
def test_who_lacks_the_right_is_told_at_once(up: Up, command: str, subject: str) -> None:
    guest = f"nats://{up.url.rpartition('@')[2]}"
    began = time.monotonic()

    done = up.command(f"archive {command}", "--nats-url", guest)

    said = done.stderr.decode()
    assert done.returncode == 1
    denied = f'permissions violation for publish to "fleet.v1.api.archive.{subject}"'
    assert f"the server denied it to this user ({denied})" in said
    assert time.monotonic() - began < TIMEOUT_SECONDS


def test_a_sweep_says_what_it_did(up: Up) -> None:
    done = up.command("archive sweep")
    as_json = json.loads(up.command("archive sweep", "--json").stdout)

    assert done.returncode == 0
    assert "sweep: nothing to do, in" in done.stderr.decode()
    assert (as_json["state"], as_json["error"]) == ("done", "")


def test_a_reindex_reads_every_object(up: Up) -> None:
    done = json.loads(up.command("archive reindex", "--json").stdout)

    assert done["state"] == "done"
    assert done["counts"]["entries"] >= 5
    assert done["done"] == done["total"] == done["counts"]["objects"]


@pytest.mark.parametrize(
    ("arguments", "text", "code"),
    [
        pytest.param(("get", "k", "--json"), "--json needs --output", 2, id="json"),
        pytest.param(("status", "-n", "nobodys"), "knows no namespace nobodys", 1, id="status"),
        pytest.param(("ls", "-n", "defaul"), "defaul: do you mean default?", 1, id="ls"),
        pytest.param(("get", "k", "-n", "Default"), "do you mean default?", 1, id="get"),
        pytest.param(("dead", "-n", "dfault"), "do you mean default?", 1, id="dead"),
        pytest.param(("ls", "-n", "nobodys"), "nobodys; it knows default, other", 1, id="known"),
        pytest.param(("rm", "k", "-n", "nobodys"), "nobody serves", 1, id="rm"),
        pytest.param(("rm",), "Missing argument", 2, id="no-keys"),
    ],
)
def test_what_is_wrong_is_named(up: Up, arguments: tuple[str, ...], text: str, code: int) -> None:
    name, *rest = arguments

    done = up.command(f"archive {name}", *rest)

    assert done.returncode == code
    assert text in done.stderr.decode()
    assert b"Traceback" not in done.stderr
