"""What a configuration may say, and what is answered when it says something else."""

from typing import Any

import msgspec
import pytest

from cache.configuration import ConfigurationError, check_fields, read_fields, unknown_fields
from schemas.lmcache import LmcacheConfig, LmcacheConfigure


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        pytest.param("max_size_mb", 0, "positive", id="no size"),
        pytest.param("max_size_mb", -5, "positive", id="negative size"),
        pytest.param("max_size_mb", 1e300, "at most 1000000000", id="size beyond all"),
        pytest.param("max_size_mb", "12", "positive", id="size as text"),
        pytest.param("max_size_mb", True, "positive", id="size as bool"),
        pytest.param("min_prefix_length", 0, "at least 1", id="no prefix"),
        pytest.param("min_prefix_length", 1.5, "whole number", id="half a token"),
        pytest.param("max_concurrent_users", 0, "from 1 to", id="no users"),
        pytest.param("enabled", 1, "true or false", id="bool as number"),
        pytest.param("cache_warmup", "yes", "true or false", id="bool as text"),
        pytest.param("eviction_policy", "best", "one of", id="unknown policy"),
        pytest.param("eviction_policy", ["lru"], "one of", id="policy as list"),
        pytest.param("auto_eviction", {"a": "b" * 1000}, "true or false", id="long value"),
    ],
)
def test_a_refusal_names_field_value_and_rule(field: str, value: Any, rule: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        check_fields({field: value})

    text = str(refused.value)
    assert text.startswith(f"{field} = {msgspec.json.encode(value).decode()[:60]}")
    assert rule in text
    assert len(text) < 250
    assert text.isascii()  # it travels in a header


def test_the_edges_of_each_rule_pass() -> None:
    check_fields(
        {
            "max_size_mb": 5e-324,
            "min_prefix_length": 1,
            "max_concurrent_users": 1_000_000,
            "eviction_policy": "lru",
            "enabled": False,
        }
    )
    check_fields({"max_size_mb": 1_000_000_000})


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\x00", id="not UTF-8"),
        pytest.param(b"[1]", id="list"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"enabled": tru', id="cut short"),
        pytest.param(b'{"max_size_mb": NaN}', id="not JSON"),
    ],
)
def test_what_is_no_object_is_refused(payload: bytes) -> None:
    with pytest.raises(ConfigurationError, match="not a JSON object"):
        read_fields(payload)


def test_null_leaves_a_field_as_it_is() -> None:
    assert read_fields(b'{"enabled": null, "max_size_mb": 2}') == {"max_size_mb": 2}


def test_unknown_fields_are_told_apart() -> None:
    assert unknown_fields({"enabled": True, "zeta": 1, "alpha": 2}) == ["alpha", "zeta"]


def test_a_request_can_change_every_field() -> None:
    fields = {field.name for field in msgspec.structs.fields(LmcacheConfig)}
    request = {field.name for field in msgspec.structs.fields(LmcacheConfigure)}

    assert request == fields | {"namespace"}


def test_the_schema_has_the_promised_defaults() -> None:
    assert msgspec.to_builtins(LmcacheConfig()) == {
        "enabled": True,
        "max_size_mb": 1024.0,
        "eviction_policy": "lru",
        "enable_prefix_caching": True,
        "min_prefix_length": 10,
        "cache_warmup": False,
        "auto_eviction": True,
        "enable_sharing": True,
        "max_concurrent_users": 100,
    }
