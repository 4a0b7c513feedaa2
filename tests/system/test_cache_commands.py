"""get, put, stat, keys and warm as a user types them, on a running installation."""

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.bus import connect
from schemas.protocols import Answer, Call, Endpoint
from tests.support.program import Up, in_thread, running_up


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(tmp_path_factory.mktemp("up"), "--node", "n1", "--no-live") as running:
        yield running


def test_a_file_is_put_and_written_back_unchanged(up: Up, tmp_path: Path) -> None:
    value, source, target = bytes(range(256)) * 64, tmp_path / "in", tmp_path / "out"
    source.write_bytes(value)

    put = up.command("put", "file", "--file", source, "--json")
    got = up.command("get", "file", "--output", target, "--json")

    assert json.loads(put.stdout)["size_bytes"] == len(value)
    assert json.loads(got.stdout) == {
        "key": "file",
        "found": True,
        "size_bytes": len(value),
        "file": str(target),
    }
    assert target.read_bytes() == value


def test_a_miss_writes_no_file(up: Up, tmp_path: Path) -> None:
    done = up.command("get", "nothing-here", "--output", tmp_path / "out", "--json")

    assert (done.returncode, json.loads(done.stdout)["found"]) == (1, False)
    assert not (tmp_path / "out").exists()


def test_all_that_has_a_tag_is_deleted(up: Up) -> None:
    for key, tag in (("t1", "red"), ("t2", "red"), ("t3", "blue")):
        assert up.command("put", key, "v", "--tag", tag, "-n", "default").returncode == 0
    deleted = up.command("delete", "--tag", "red", "-n", "default", "--json")
    again = up.command("delete", "--tag", "red")
    one = up.command("delete", "t3")
    left = [up.command("get", key, "--no-restore").returncode for key in ("t1", "t2")]

    assert json.loads(deleted.stdout)["entries"] == 2
    assert "deleted 0 with tag 'red'; archived copies with that tag" in again.stderr.decode()
    assert one.stderr.decode().endswith("deleted\n")
    assert left == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "text", "code"),
    [
        (("delete",), "give either a key or --tag", 2),
        (("delete", "k", "--tag", "t"), "give either a key or --tag", 2),
        (("put", "k"), "give either a value", 2),
        (("put", "k", "v", "--file", "f"), "give either a value", 2),
        (("put", "k", "--file", "/no/such/file"), "No such file", 1),
        (("get", ""), "the key is empty", 2),
        (("get", "k\udcff"), "the key is not UTF-8 text at character 1", 2),
        (("warm", "\udcff"), "the key is not UTF-8 text at character 0", 2),
        (("keys", "\udcff"), "the prefix is not UTF-8 text at character 0", 2),
        (("put", "k", "v", "--tag", ""), "a tag is empty", 2),
        (("get", "k", "--json"), "--json needs --output", 2),
        (("warm",), "no keys", 2),
        (("warm", "--file", "/no/such/file"), "No such file", 1),
        (("stat", "--namespace", "nobodys"), "has namespace nobodys; there are default", 1),
        (("get", "k", "-n", "Default"), "has namespace Default: do you mean default?", 1),
        (("cache status", "-n", "defaul"), "has namespace defaul: do you mean default?", 1),
        (("archive rm", "k", "-n", "other"), "has namespace other; there are default", 1),
        (("put", "k", "v", "-n", "bad name"), "--namespace 'bad name' cannot be a namespace", 2),
        (("keys", "-n", ""), "--namespace '' cannot be a namespace", 2),
        (("warm", "k", "-n", "a.b"), "--namespace 'a.b' cannot be a namespace", 2),
        (("cache clear", "--yes", "-n", "all*"), "--namespace 'all*' cannot be a namespace", 2),
        (("archive status", "-n", "n" * 65), "1 to 64 ASCII letters, digits, - and _", 2),
        (("archive dead", "-n", "a b"), "--namespace 'a b' cannot be a namespace", 2),
    ],
    ids=[
        "delete nothing",
        "delete both",
        "no-value",
        "two-values",
        "no-file",
        "empty",
        "no-text",
        "no-text-to-warm",
        "no-text-prefix",
        "no-tag",
        "json",
        "no-keys",
        "no-key-file",
        "namespace",
        "near-namespace",
        "near-namespace-of-status",
        "namespace-to-remove-from",
        "no-name",
        "empty-name",
        "dotted-name",
        "wild-name",
        "long-name",
        "no-name-of-letters",
    ],
)
def test_what_is_missing_is_named(up: Up, arguments: tuple[str, ...], text: str, code: int) -> None:
    name, *rest = arguments

    done = up.command(name, *rest)

    assert done.returncode == code
    assert text in done.stderr.decode().splitlines()[-1]
    assert b"Traceback" not in done.stderr


def test_stat_shows_the_namespace_and_one_entry(up: Up) -> None:
    up.command("put", "dear", "value", "--ttl", 3600, "--tag", "a", "--tag", "b", "--class", "chat")

    shown = up.command("stat", "dear")
    entry = json.loads(up.command("stat", "dear", "--json").stdout)
    whole = json.loads(up.command("stat", "--json").stdout)
    unknown = up.command("stat", "never-put")

    assert "ttl_seconds          60.0 min" in shown.stdout.decode()
    assert (entry["tags"], entry["request_class"]) == (["a", "b"], "chat")
    assert whole["total_entries"] >= 1
    assert unknown.returncode == 1
    assert b"neither in RAM" in unknown.stderr


def test_warm_counts_the_keys_that_are_there(up: Up, tmp_path: Path) -> None:
    up.command("put", "warm one", "1")
    up.command("put", "warm two", "2")
    names = tmp_path / "keys"
    names.write_text("warm two\n\nnever put\n")

    some = up.command("warm", "warm one", "--file", names)
    whole = up.command("warm", "warm one", "--json")
    piped = up.command("warm", "--file", "-", stdin=b"warm one\nwarm two\n")

    assert (some.returncode, piped.returncode) == (1, 0), piped.stderr
    assert "2 here already, 1 not archived" in some.stderr.decode().splitlines()[-1]
    assert json.loads(whole.stdout)["here"] == 1


async def test_all_keys_are_listed_page_after_page(up: Up) -> None:
    held = [f"k{number:04}" for number in range(2500)]

    def page(call: Call) -> Answer:
        asked = msgspec.json.decode(call.payload)
        rest = [key for key in held if key > asked["after"] and key.startswith(asked["prefix"])]
        found = rest[:1000]
        return Answer(msgspec.json.encode({"keys": found, "more": len(rest) > len(found)}))

    async with await connect(up.url, name="test") as bus:
        await bus.serve("test", [Endpoint("keys", "cache.paged.keys", page)], description="test")
        whole = await in_thread(up.command, "keys", "-n", "paged")
        some = await in_thread(up.command, "keys", "k1", "-n", "paged", "--limit", 3, "--json")
        left = await in_thread(up.command, "keys", "-n", "paged", "--limit", 2)

    assert whole.stdout.decode().split() == held
    assert json.loads(some.stdout) == {"keys": ["k1000", "k1001", "k1002"], "more": True}
    assert left.stderr.decode().splitlines()[-1] == "there are more"


def test_a_made_up_trace_is_replayed_with_figures_table_and_files(up: Up, tmp_path: Path) -> None:
    page, rows = tmp_path / "r.html", tmp_path / "r.csv"

    shown = up.command(
        *("replay", "--synthetic", "sessions", "--requests", 20, "--clients", 3),
        *("--html", page, "--csv", rows),
    )
    whole = up.command("replay", "--synthetic", "sessions", "--requests", 20, "--json")

    summary = json.loads(whole.stdout)
    assert (shown.returncode, whole.returncode) == (0, 0), shown.stderr + whole.stderr
    assert "20 of 20 requests" in shown.stdout.decode()
    assert summary["classes"]["all"]["requests"] == 20
    assert 0 < summary["classes"]["all"]["block_hit_ratio"] < 1
    assert page.read_text().startswith("<!doctype html>")
    assert rows.read_text().startswith("elapsed_seconds,class,")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "either --trace FILE or --synthetic"),
        (("--trace", "/no/such.jsonl"), "No such file"),
        (("--trace", __file__), "no request in it; line 1: "),
        (("--synthetic", "sessions", "--speed", "0x"), "a positive number like 10x"),
    ],
    ids=["nothing", "no-file", "no-trace", "speed"],
)
def test_a_replay_that_cannot_be_is_one_clear_line(
    up: Up, arguments: tuple[str, ...], text: str
) -> None:
    done = up.command("replay", *arguments)

    assert done.returncode == 2
    assert text in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_bad_lines_of_a_trace_are_named_by_number(up: Up, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "hash_ids": [1, 2]}\noops\n')

    done = up.command("replay", "--trace", trace, "--json")

    assert json.loads(done.stdout)["bad_lines"] == 1
    assert "line 2 left out" in done.stderr.decode()
