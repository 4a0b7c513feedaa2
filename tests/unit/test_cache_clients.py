"""Clients by name: how many within a minute, and whose key is whose."""

import contextlib

import pytest

from cache.clients import WINDOW_NS, Clients
from schemas.lmcache import LmcacheConfig
from schemas.protocols import RequestError
from tests.support.evictions import ManualClock

TWO = LmcacheConfig(max_concurrent_users=2)
PRIVATE = LmcacheConfig(enable_sharing=False)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def clients(clock: ManualClock) -> Clients:
    return Clients(clock)


def name(client: str) -> dict[str, str]:
    return {"Fleet-Client": client} if client else {}


def test_one_client_too_many_is_told_when_to_come_again(
    clients: Clients, clock: ManualClock
) -> None:
    clients.admit(TWO, name("a"))
    clock.advance(20)
    clients.admit(TWO, name("b"))

    with pytest.raises(RequestError) as refused:
        clients.admit(TWO, name("c"))

    assert refused.value.code == 429
    assert refused.value.retry_after_seconds == 40
    assert "max_concurrent_users is 2; try again in 40 s" in refused.value.text
    assert [clients.admit(TWO, name(known)) for known in "ab"] == ["a", "b"]


def test_a_client_counts_for_a_minute_from_its_last_request(
    clients: Clients, clock: ManualClock
) -> None:
    clients.admit(TWO, name("a"))
    clients.admit(TWO, name("b"))
    clock.advance(30)
    clients.admit(TWO, name("a"))
    clock.ns += WINDOW_NS - 30_000_000_000 - 1
    with pytest.raises(RequestError):
        clients.admit(TWO, name("c"))
    clock.ns += 1

    assert clients.admit(TWO, name("c")) == "c"
    with pytest.raises(RequestError):
        clients.admit(TWO, name("b"))


def test_requests_without_a_name_are_one_client_together(clients: Clients) -> None:
    one = LmcacheConfig(max_concurrent_users=1)

    assert [clients.admit(one, {}), clients.admit(one, {})] == ["", ""]
    with pytest.raises(RequestError):
        clients.admit(one, name("a"))


@pytest.mark.parametrize("bad", ["a b", "\u00e9", "a\0", "x" * 129, "a\n"])
def test_a_malformed_name_is_refused_and_does_not_count(clients: Clients, bad: str) -> None:
    with pytest.raises(RequestError) as refused:
        clients.admit(LmcacheConfig(max_concurrent_users=1), {"Fleet-Client": bad})

    assert refused.value.code == 400
    assert "Fleet-Client" in refused.value.text
    assert clients.admit(LmcacheConfig(max_concurrent_users=1), name("a")) == "a"


def test_a_million_names_cost_no_more_than_those_allowed(clients: Clients) -> None:
    for number in range(1_000):
        with contextlib.suppress(RequestError):
            clients.admit(TWO, name(f"c{number}"))

    assert len(clients._last_seen) == 2


def test_keys_are_everybodys_while_clients_share(clients: Clients) -> None:
    assert clients.key(TWO, "a", "key") == clients.key(TWO, "", "key") == "key"


def test_private_keys_differ_by_client_and_key(clients: Clients) -> None:
    kept = {clients.key(PRIVATE, who, key) for who in ("a", "ab") for key in ("b", "bb", "\0b")}

    assert len(kept) == 6
    assert "b" not in kept


def test_a_private_key_needs_a_name_and_must_fit_with_it(clients: Clients) -> None:
    longest = "k" * (10240 - len("\0client\0abc\0"))
    with pytest.raises(RequestError, match="400 enable_sharing is off: the header Fleet-Client"):
        clients.key(PRIVATE, "", "key")
    with pytest.raises(RequestError, match=f"400 .* keys of abc have at most {len(longest)} bytes"):
        clients.key(PRIVATE, "abc", longest + "k")

    assert len(clients.key(PRIVATE, "abc", longest)) == 10240
