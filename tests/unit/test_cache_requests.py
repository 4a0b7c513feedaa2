"""Headers and payloads of requests to the cache: read exactly, refused by name."""

import pytest

from cache.requests import MAX_LABEL_BYTES, read_put, read_upload
from schemas.cache import INLINE_LIMIT_BYTES, encode_header, read_key
from schemas.protocols import RequestError

NOW_NS = 1_000_000_000


def test_every_header_of_a_put_reaches_the_entry() -> None:
    headers = {
        "Fleet-Key": encode_header("ключ 1%"),
        "Fleet-Prefix-Tokens": "128",
        "Fleet-Parent": encode_header("parent/é"),
        "Fleet-Cost-Seconds": "1.5e-1",
        "Fleet-Ttl-Seconds": "2.5",
        "Fleet-Class": "chat",
        "Fleet-Tags": f"{encode_header('a,b')}, c",
        "Fleet-Meta": encode_header('{"model": "x y"}'),
        "Fleet-Version": "0000000000ff-00000000aa",
    }

    entry, expected_version = read_put(headers, b"value", NOW_NS)

    assert entry.key == "ключ 1%"
    assert entry.value == b"value"
    assert entry.prefix_tokens == 128
    assert entry.parent == "parent/é"
    assert entry.cost_seconds == 0.15
    assert entry.ttl_seconds == 2.5
    assert entry.expires_at_ns == NOW_NS + 2_500_000_000
    assert entry.request_class == "chat"
    assert entry.tags == ("a,b", "c")
    assert entry.meta == {"model": "x y"}
    assert expected_version == "0000000000ff-00000000aa"


def test_a_put_needs_only_its_key() -> None:
    entry, expected_version = read_put({"Fleet-Key": "k"}, b"", NOW_NS)

    assert entry.ttl_seconds is None
    assert entry.expires_at_ns is None
    assert expected_version is None


def test_a_ttl_of_zero_keeps_out_of_the_archive_but_does_not_expire() -> None:
    entry, _ = read_put({"Fleet-Key": "k", "Fleet-Ttl-Seconds": "0"}, b"", NOW_NS)

    assert entry.ttl_seconds == 0
    assert entry.expires_at_ns is None


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Fleet-Key", ""),
        ("Fleet-Key", "100%"),
        ("Fleet-Key", "%zz"),
        ("Fleet-Key", "%ff"),
        ("Fleet-Key", "k" * 10241),
        ("Fleet-Prefix-Tokens", "-1"),
        ("Fleet-Prefix-Tokens", "1.0"),
        ("Fleet-Prefix-Tokens", "٣"),
        ("Fleet-Prefix-Tokens", "9" * 5000),
        ("Fleet-Prefix-Tokens", "1000000001"),
        ("Fleet-Parent", ""),
        ("Fleet-Parent", "%"),
        ("Fleet-Cost-Seconds", "nan"),
        ("Fleet-Cost-Seconds", "inf"),
        ("Fleet-Cost-Seconds", "-0.1"),
        ("Fleet-Cost-Seconds", "1_0"),
        ("Fleet-Cost-Seconds", "1000001"),
        ("Fleet-Cost-Seconds", "1e16"),
        ("Fleet-Ttl-Seconds", "1e99"),
        ("Fleet-Ttl-Seconds", "315360001"),
        ("Fleet-Ttl-Seconds", "soon"),
        ("Fleet-Class", "two words"),
        ("Fleet-Class", ""),
        ("Fleet-Tags", "a,,b"),
        ("Fleet-Tags", "%2"),
        ("Fleet-Meta", "not%20json"),
        ("Fleet-Meta", encode_header('["list"]')),
        ("Fleet-Meta", encode_header('{"n": 1}')),
        ("Fleet-Version", "latest"),
        ("Fleet-Version", "0000000000FF-00000000aa"),
    ],
)
def test_a_malformed_header_is_refused_and_named(header: str, value: str) -> None:
    headers = {"Fleet-Key": "k", header: value}

    with pytest.raises(RequestError) as refused:
        read_put(headers, b"", NOW_NS)

    assert refused.value.code == 400
    assert header in refused.value.text


def test_a_put_without_key_is_refused() -> None:
    with pytest.raises(RequestError, match="400 header Fleet-Key is missing"):
        read_put({}, b"", NOW_NS)


def test_values_are_taken_up_to_the_limit_exactly() -> None:
    entry, _ = read_put({"Fleet-Key": "k"}, bytes(INLINE_LIMIT_BYTES), NOW_NS)

    with pytest.raises(RequestError, match=r"413 value of 524289 bytes .* limit of 524288 bytes"):
        read_put({"Fleet-Key": "k"}, bytes(INLINE_LIMIT_BYTES + 1), NOW_NS)
    assert len(entry.value) == INLINE_LIMIT_BYTES


def test_tags_and_meta_are_bounded_together() -> None:
    half = "t" * (MAX_LABEL_BYTES // 2)
    meta = encode_header('{"m": "' + "v" * (MAX_LABEL_BYTES // 2 - 1) + '"}')

    read_put({"Fleet-Key": "k", "Fleet-Tags": half, "Fleet-Meta": meta}, b"", NOW_NS)

    with pytest.raises(RequestError, match="400 Fleet-Tags and Fleet-Meta have 16385 bytes"):
        read_put({"Fleet-Key": "k", "Fleet-Tags": half + "t", "Fleet-Meta": meta}, b"", NOW_NS)


@pytest.mark.parametrize("key", ["k", "é" * 5120, "a b\n%41"])
def test_a_key_as_payload_is_taken_as_it_is(key: str) -> None:
    assert read_key(key.encode()) == key


@pytest.mark.parametrize("payload", [b"", b"\xff", b"k" * 10241, b"\xed\xa0\x80"])
def test_a_payload_that_is_no_key_is_refused(payload: bytes) -> None:
    with pytest.raises(RequestError, match=r"400 .*payload"):
        read_key(payload)


def test_a_digest_without_a_size_is_refused_and_replaces_nothing() -> None:
    with pytest.raises(RequestError, match="400 header Fleet-Size is missing"):
        read_put({"Fleet-Key": "k", "Fleet-Digest": "0" * 64}, b"", 0)


@pytest.mark.parametrize(
    ("headers", "payload", "text"),
    [
        pytest.param({"Fleet-Size": "524288"}, b"", "Fleet-Size: must be above", id="small"),
        pytest.param({"Fleet-Size": "0"}, b"", "Fleet-Size: must be above", id="empty"),
        pytest.param({"Fleet-Size": "-1"}, b"", "Fleet-Size: must be a whole", id="negative"),
        pytest.param({"Fleet-Size": "1e6"}, b"", "Fleet-Size: must be a whole", id="no number"),
        pytest.param({"Fleet-Size": "600000"}, b"v", "without payload", id="payload"),
        pytest.param(
            {"Fleet-Size": "600000", "Fleet-Digest": "AB"}, b"", "Fleet-Digest", id="digest"
        ),
        pytest.param({"Fleet-Size": "600000", "Fleet-Ttl-Seconds": "x"}, b"", "Ttl", id="ttl"),
    ],
)
def test_an_announcement_that_makes_no_sense_names_the_header(
    headers: dict[str, str], payload: bytes, text: str
) -> None:
    with pytest.raises(RequestError, match=text) as refused:
        read_upload({"Fleet-Key": "k", **headers}, payload)

    assert refused.value.code == 400
