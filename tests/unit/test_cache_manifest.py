"""Manifests: what goes out with an eviction comes back with a restore, or is refused."""

import itertools
from typing import Any

import msgspec
import pytest

from cache.entry import Entry
from cache.manifest import (
    ForeignAnswerError,
    check_restored,
    message,
    read_restored,
    restored_entry,
)
from cache.namespace import Namespace
from cache.outbox import Item
from cache.settings import CacheSettings
from schemas.cache import (
    EVICTED_HEADER,
    MAX_COST_SECONDS,
    MAX_PREFIX_TOKENS,
    Evicted,
    decode_header,
    encode_header,
    encode_json_header,
)
from schemas.protocols import Answer

NOW_NS = 1_700_000_000_000_000_000
VERSION = "000000000001-0000000001"


@pytest.fixture
def space() -> Namespace:
    return Namespace(
        "default",
        CacheSettings(),
        epoch_ms=1,
        generation=3,
        message_ids=map(str, itertools.count()),
        clock=lambda: NOW_NS,
    )


def evicted(value: bytes = b"value", **known: Any) -> Item:
    entry = Entry(key="key é", value=value, version=VERSION, inserted_at_ns=NOW_NS, **known)
    return Item(
        key=entry.key,
        version=VERSION,
        message_id="id",
        evicted_at_ns=NOW_NS,
        entry=entry,
        expires_at_ns=NOW_NS + 60_000_000_000,
    )


def restore(answer: Answer, **asked: Any) -> Entry | None:
    asked = {"namespace": "default", "key": "key é", "generation": 3, **asked}
    manifest = read_restored(answer, **asked)
    if manifest is None:
        return None
    check_restored(manifest, answer.payload)
    return restored_entry(manifest, answer.payload, NOW_NS)


def test_an_entry_survives_the_way_to_the_archive_and_back(space: Namespace) -> None:
    known: dict[str, Any] = {
        "access_count": 4,
        "prefix_tokens": 7,
        "parent": "p",
        "cost_seconds": 1.5,
        "request_class": "chat",
        "tags": ("a", "b"),
        "meta": {"k": "v"},
    }

    back = restore(Answer(*message(evicted(**known), space)))

    assert back is not None
    assert (back.value, back.version, back.inserted_at_ns) == (b"value", VERSION, NOW_NS)
    assert back.expires_at_ns == NOW_NS + 60_000_000_000
    assert {name: getattr(back, name) for name in known} == {**known, "access_count": 5}


def test_what_an_older_cache_let_a_put_say_comes_back_within_bounds(space: Namespace) -> None:
    item = evicted(prefix_tokens=2**63 - 1, cost_seconds=1e15)

    back = restore(Answer(*message(item, space)))

    assert back is not None
    assert (back.prefix_tokens, back.cost_seconds) == (MAX_PREFIX_TOKENS, MAX_COST_SECONDS)


def test_a_heuristics_deadline_ends_with_the_restore(space: Namespace) -> None:
    item = evicted()
    item.heuristic = "adaptive"

    back = restore(Answer(*message(item, space)))

    assert back is not None
    assert back.expires_at_ns is None


def test_a_tombstone_has_no_payload_and_says_so(space: Namespace) -> None:
    item = Item(key="key", version=VERSION, message_id="id", evicted_at_ns=NOW_NS)

    payload, headers = message(item, space)

    manifest = msgspec.json.decode(decode_header(headers[EVICTED_HEADER]), type=Evicted)
    assert payload == b""
    assert manifest.tombstone
    assert (manifest.key, manifest.version, manifest.generation) == ("key", VERSION, 3)


def test_the_largest_entry_fits_into_one_message(space: Namespace) -> None:
    worst = '"\x01' * 5120  # each escapes to 6 and 8 bytes
    entry = Entry(
        key=worst,
        value=bytes(512 * 1024),
        parent=worst,
        tags=("\x01" * 16 * 1024,),
        version=VERSION,
    )
    item = Item(key=worst, version=VERSION, message_id="id", evicted_at_ns=0, entry=entry)

    payload, headers = message(item, space)

    assert len(payload) + len(headers[EVICTED_HEADER]) < 1024 * 1024 - 1024


def test_a_miss_is_no_entry() -> None:
    assert restore(Answer(headers={"Fleet-Status": "miss"})) is None


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        pytest.param({"key": "other"}, "another entry", id="key"),
        pytest.param({"namespace": "other"}, "another entry", id="namespace"),
        pytest.param({"generation": 4}, "generation 3, not 4", id="generation"),
    ],
)
def test_an_answer_to_another_question_is_refused(
    space: Namespace, asked: dict[str, Any], text: str
) -> None:
    with pytest.raises(ForeignAnswerError, match=text):
        restore(Answer(*message(evicted(), space)), **asked)


def test_a_damaged_value_is_refused(space: Namespace) -> None:
    _, headers = message(evicted(), space)

    with pytest.raises(ForeignAnswerError, match="digest"):
        restore(Answer(b"valuf", headers))


@pytest.mark.parametrize("header", ["", "%", "%7B%7D", encode_header('{"key": 1}')])
def test_an_unreadable_manifest_is_refused(header: str) -> None:
    with pytest.raises(ForeignAnswerError, match=EVICTED_HEADER):
        restore(Answer(b"", {EVICTED_HEADER: header}))


def test_a_tombstone_is_no_answer(space: Namespace) -> None:
    item = Item(key="key é", version=VERSION, message_id="id", evicted_at_ns=NOW_NS)

    with pytest.raises(ForeignAnswerError, match="another entry"):
        restore(Answer(*message(item, space)))


@pytest.mark.parametrize("text", ["k", "a b%20c", "ü\n\x7f", '"quoted\\" =3D', "\u2028 "])
def test_a_manifest_comes_back_from_its_header(text: str) -> None:
    json = msgspec.json.encode({"key": text})
    header = encode_json_header(json)

    assert msgspec.json.decode(decode_header(header)) == {"key": text}
    assert header.isascii()
    assert header.isprintable()
    assert " " not in header
