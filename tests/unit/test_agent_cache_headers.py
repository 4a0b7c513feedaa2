"""What is refused before it is sent to the cache, and what that says."""

from typing import Any

import pytest

from agent.cache_headers import (
    checked_cost,
    checked_tag,
    checked_text,
    checked_ttl,
    get_headers,
    key_bytes,
    put_headers,
)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: key_bytes(""), ValueError, "the key is empty"),
        (lambda: key_bytes("é" * 6000), ValueError, "key of 12000 bytes exceeds the limit"),
        (lambda: key_bytes(5), TypeError, "the key is a str, not int: 5"),  # type: ignore[arg-type]
        (lambda: key_bytes("ab\udcff"), ValueError, "the key is not UTF-8 text at character 2"),
        (lambda: checked_tag(""), ValueError, "a tag is empty"),
        (lambda: checked_tag(5), TypeError, "a tag is a str, not int: 5"),
        (lambda: checked_text("parent", b"x"), TypeError, "parent is a str, not bytes: b'x'"),
        (lambda: put_headers(None, ["a", ""], None), ValueError, "a tag is empty"),
        (lambda: put_headers(None, "tag", None), TypeError, "tags are a sequence of str"),
        (lambda: put_headers(5, [], None), TypeError, "request_class is a str, not int"),  # type: ignore[arg-type]
        (
            lambda: put_headers(None, [], {"a": 5}),  # type: ignore[dict-item]
            TypeError,
            "the value of 'a' in meta is a str, not int: 5",
        ),
        (
            lambda: get_headers(restore=True, request_class=5),  # type: ignore[arg-type]
            TypeError,
            "request_class is a str, not int",
        ),
        (lambda: checked_ttl(-1), ValueError, "ttl_seconds is -1: it must be finite, 0 or more"),
        (lambda: checked_ttl(float("nan")), ValueError, "ttl_seconds is nan"),
        (lambda: checked_cost(float("nan")), ValueError, "cost_seconds is nan: it must be finite"),
        (lambda: checked_cost(10**400), ValueError, "cost_seconds is 1000"),
    ],
    ids=lambda one: one if isinstance(one, str) else getattr(one, "__name__", "").strip("<>"),
)
def test_what_is_wrong_is_named_with_its_rule(call: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as refused:
        call()

    assert str(refused.value).startswith(text)
    assert type(refused.value) is kind


@pytest.mark.parametrize("cost", [-0.0, 1e-120, 1e-19])
def test_a_cost_that_no_header_can_say_is_none(cost: float) -> None:
    assert str(checked_cost(cost)) == "0.0"


def test_what_may_be_said_is_said() -> None:
    headers = put_headers("chat", ["a,b", "c"], {"by": "é"})

    assert headers["Fleet-Tags"] == "a%2Cb,c"
    assert headers["Fleet-Class"] == "chat"
    assert set(headers) == {"Fleet-Tags", "Fleet-Class", "Fleet-Meta"}
    assert put_headers(None, (), None) == put_headers("", [], {}) == {}
