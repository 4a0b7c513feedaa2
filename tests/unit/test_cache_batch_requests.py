"""What a request about many entries may say, and how it is refused."""

from typing import Any

import msgspec
import pytest

from cache.batch_requests import read_keys, read_mput
from schemas.cache import INLINE_LIMIT_BYTES
from schemas.protocols import RequestError
from schemas.units import SECOND_NS

NOW_NS = 10 * SECOND_NS


def mput(described: Any, values: bytes = b"") -> bytes:
    return msgspec.json.encode(described) + b"\n" + values


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        pytest.param(b"", "400 the payload is a JSON list of keys", id="empty"),
        pytest.param(b"{}", "400 the payload is a JSON list of keys", id="no list"),
        pytest.param(b"[1]", "400 the payload is a JSON list of keys", id="no text"),
        pytest.param(b'["\xff"]', "400 the payload is a JSON list of keys", id="not UTF-8"),
        pytest.param(b'["\\ud800"]', "400 the payload is a JSON list of keys", id="half a letter"),
        pytest.param(b"[" * 100_000, "400 the payload is a JSON list of keys", id="too deep"),
        pytest.param(b'["a", ""]', "400 key 1: a key has 1 to 10240 bytes, not 0", id="empty key"),
        pytest.param(
            msgspec.json.encode(["é" * 5121]), "400 key 0: .*not 10242", id="key too long"
        ),
        pytest.param(b'["a", "b", "a"]', "400 keys 0 and 2 are the same", id="twice"),
        pytest.param(b'["a", "b", "c", "d"]', "413 4 keys are more than 3", id="too many"),
    ],
)
def test_no_list_of_different_keys_is_refused(payload: bytes, text: str) -> None:
    with pytest.raises(RequestError, match=text):
        read_keys(payload, 3)


@pytest.mark.parametrize("payload", [b"[]", b' ["a", "\\u0000", "\xc3\xa9"] '], ids=["none", "3"])
def test_keys_may_be_any_text(payload: bytes) -> None:
    assert read_keys(payload, 3) == msgspec.json.decode(payload)


def test_entries_have_what_they_say_and_for_the_rest_what_the_headers_say() -> None:
    described = [
        {"key": "a", "size": 2, "prefix_tokens": 7, "cost_seconds": 0.5, "ttl_seconds": 9},
        {"key": "b", "size": 0, "parent": "p", "version": "0123456789ab-0123456789"},
    ]
    headers = {"Fleet-Class": "chat", "Fleet-Tags": "t,u", "Fleet-Ttl-Seconds": "60"}

    (a, a_version), (b, b_version) = read_mput(headers, mput(described, b"v1"), NOW_NS)

    assert (a.key, a.value, a.prefix_tokens, a.cost_seconds) == ("a", b"v1", 7, 0.5)
    assert (a.ttl_seconds, a.expires_at_ns) == (9, NOW_NS + 9 * SECOND_NS)
    assert (b.value, b.parent, b.ttl_seconds) == (b"", "p", 60)
    assert (a_version, b_version) == (None, "0123456789ab-0123456789")
    assert a.tags == b.tags == ("t", "u")
    assert a.request_class == b.request_class == "chat"


def test_in_a_chain_each_extends_the_one_before() -> None:
    described = [{"key": key, "size": 1} for key in "abc"]

    found = read_mput({"Fleet-Chain": "1", "Fleet-Parent": "p"}, mput(described, b"123"), NOW_NS)

    assert [(entry.key, entry.parent) for entry, _ in found] == [("a", "p"), ("b", "a"), ("c", "b")]


@pytest.mark.parametrize(
    ("payload", "headers", "text"),
    [
        pytest.param(b"", {}, "400 the payload begins with a JSON list", id="empty"),
        pytest.param(b"\xff\n", {}, "400 the payload begins with a JSON list", id="not UTF-8"),
        pytest.param(mput([{"key": "a", "size": -1}]), {}, "400 .*size", id="negative size"),
        pytest.param(mput([{"key": "a", "size": 0, "x": 1}]), {}, "400 .*`x`", id="unknown field"),
        pytest.param(mput([{"size": 0}]), {}, "400 .*`key`", id="no key"),
        pytest.param(
            b'[{"key": "a", "size": 0}]', {}, "400 the JSON list ends with a line feed", id="no end"
        ),
        pytest.param(
            mput([{"key": "a", "size": 3}], b"12"), {}, "400 .*3 bytes, but 2", id="too few bytes"
        ),
        pytest.param(
            mput([{"key": "a", "size": 1}], b"12"), {}, "400 .*1 bytes, but 2", id="too many bytes"
        ),
        pytest.param(
            mput([{"key": "a", "size": 2**53 - 1}] * 2), {}, "400 .*add up", id="absurd sizes"
        ),
        pytest.param(
            mput([{"key": "a", "size": 0}] * 2), {}, "400 keys 0 and 1 are the same", id="twice"
        ),
        pytest.param(mput([{"key": "", "size": 0}]), {}, "400 key 0", id="empty key"),
        pytest.param(
            mput([{"key": "a", "size": 0, "parent": ""}]), {}, "400 entry 0", id="empty parent"
        ),
        pytest.param(
            mput([{"key": "a", "size": 0, "version": "7"}]), {}, "400 entry 0", id="no version"
        ),
        pytest.param(
            mput([{"key": "a", "size": 0, "ttl_seconds": 1e9}]), {}, "400 entry 0", id="TTL"
        ),
        pytest.param(
            mput([{"key": "a", "size": 0, "prefix_tokens": 10**9 + 1}]), {}, "400", id="tokens"
        ),
        pytest.param(
            mput([{"key": "a", "size": 0, "cost_seconds": 1e6 + 1}]), {}, "400", id="cost"
        ),
        pytest.param(
            mput([{"key": str(n), "size": 0} for n in range(1001)]),
            {},
            "413 1001 entries are more than 1000",
            id="too many",
        ),
        pytest.param(
            mput([{"key": "a", "size": INLINE_LIMIT_BYTES + 1}], bytes(INLINE_LIMIT_BYTES + 1)),
            {},
            "413 entry 0: value of 524289 bytes",
            id="value too large",
        ),
        pytest.param(mput([]), {"Fleet-Key": "k"}, "400 header Fleet-Key", id="a key for all"),
        pytest.param(
            mput([{"key": "a", "size": 0}]), {"Fleet-Tags": "%"}, "400 header Fleet-Tags", id="tags"
        ),
        pytest.param(
            mput([{"key": "a", "size": 0, "parent": "p"}]),
            {"Fleet-Chain": "1"},
            "400 entry 0: no parent",
            id="own parent in a chain",
        ),
    ],
)
def test_a_malformed_mput_is_refused_by_name(
    payload: bytes, headers: dict[str, str], text: str
) -> None:
    with pytest.raises(RequestError, match=text):
        read_mput(headers, payload, NOW_NS)
