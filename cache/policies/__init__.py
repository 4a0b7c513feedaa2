"""Eviction policies: which entry leaves RAM first. The table `POLICIES` names them."""

from collections.abc import Callable, Mapping

from cache.policies.fifo import Fifo
from cache.policies.lfu import Lfu
from cache.policies.lru import Lru
from cache.policies.policy import EvictionPolicy
from cache.policies.prefix import Prefix
from cache.policies.random import Random

POLICIES: Mapping[str, Callable[[], EvictionPolicy]] = {
    "lru": Lru,
    "lfu": Lfu,
    "fifo": Fifo,
    "random": Random,
    "prefix": Prefix,
}


def make_policy(name: str) -> EvictionPolicy:
    """A new policy by its name.

    Raises:
        ValueError: no such policy; the text lists the known ones.
    """
    if name not in POLICIES:
        known = ", ".join(sorted(POLICIES))
        raise ValueError(f"unknown eviction policy {name!r}; known: {known}")
    return POLICIES[name]()
