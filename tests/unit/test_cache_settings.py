"""Settings of the cache: defaults as documented, nonsense refused by name."""

from typing import Any, get_args, get_type_hints

import msgspec
import pytest

from cache.policies import POLICIES
from cache.settings import CacheSettings


def test_the_defaults_validate() -> None:
    settings = msgspec.convert({}, CacheSettings)

    assert settings == CacheSettings()
    assert settings.namespaces == ("default",)
    assert settings.max_memory_mb == 1024
    assert settings.eviction_policy == "prefix"


def test_every_policy_of_the_cache_can_be_chosen_and_no_other() -> None:
    choices = get_args(
        get_args(get_type_hints(CacheSettings, include_extras=True)["eviction_policy"])[0]
    )

    assert sorted(choices) == sorted(POLICIES)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        pytest.param({"max_memory_mb": 0}, "max_memory_mb", id="no memory"),
        pytest.param({"namespaces": []}, "namespaces", id="no namespace"),
        pytest.param({"namespaces": ["a.b"]}, "namespaces", id="namespace not a token"),
        pytest.param({"namespaces": ["a", "a"]}, "names one twice: a, a", id="namespace twice"),
        pytest.param({"eviction_policy": "magic"}, "eviction_policy", id="unknown policy"),
        pytest.param({"outbox_max_bytes": 1}, "outbox_max_bytes", id="outbox too small"),
        pytest.param({"max_memory": 5}, "max_memory", id="unknown key"),
        pytest.param({"ttl": {"base_seconds": float("inf")}}, "base_seconds", id="endless TTL"),
        pytest.param({"ttl": {"base_seconds": float("nan")}}, "base_seconds", id="TTL is NaN"),
        pytest.param(
            {"ttl": {"min_seconds": 9, "max_seconds": 8}},
            r"min_seconds \(9\) must not be above max_seconds \(8\)",
            id="crossed TTL bounds",
        ),
        pytest.param(
            {"namespace": {"chat": {"max_memory_mb": 5}}},
            "namespace.chat is not among namespaces: default",
            id="limits of a namespace that is not served",
        ),
        pytest.param(
            {"namespace": {"default": {"memory_mb": 5}}}, "memory_mb", id="unknown own limit"
        ),
        pytest.param(
            {"namespace": {"default": {"max_memory_mb": 0}}},
            r"\$.namespace\[...\].max_memory_mb",
            id="no memory of its own",
        ),
    ],
)
def test_nonsense_is_refused_with_its_name(values: dict[str, Any], text: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=text):
        msgspec.convert(values, CacheSettings)


def test_a_namespace_has_the_common_limits_but_for_its_own() -> None:
    settings = msgspec.convert(
        {
            "namespaces": ["chat", "agents"],
            "max_memory_mb": 64,
            "archive_when_full": "refuse",
            "namespace": {"chat": {"max_memory_mb": 8, "ttl": {"heuristic": "static"}}},
        },
        CacheSettings,
    )

    chat, agents = settings.of("chat"), settings.of("agents")

    assert (chat.max_memory_mb, chat.ttl.heuristic) == (8, "static")
    assert chat.archive_when_full == "refuse"
    assert agents == settings
