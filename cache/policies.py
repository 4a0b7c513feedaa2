"""Eviction policies: which entry leaves RAM first. The table `POLICIES` names them."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Protocol


class EvictionPolicy(Protocol):
    """Keeps the order of the keys in RAM. Every method is O(1).

    The cache calls it under its lock, with keys it holds (`added`: holds from now on).
    """

    def added(self, key: str) -> None:
        """`key` is new."""

    def used(self, key: str) -> None:
        """`key` was looked up."""

    def removed(self, key: str) -> None:
        """`key` left, for whatever reason."""

    def victim(self) -> str:
        """The key that should leave next; only called while there is one."""


class Lru:
    """Least recently used first."""

    def __init__(self) -> None:
        self._order: OrderedDict[str, None] = OrderedDict()

    def added(self, key: str) -> None:
        """New: the most recent."""
        self._order[key] = None

    def used(self, key: str) -> None:
        """Looked up: the most recent again."""
        self._order.move_to_end(key)

    def removed(self, key: str) -> None:
        """Gone."""
        del self._order[key]

    def victim(self) -> str:
        """The one not used for longest."""
        return next(iter(self._order))


POLICIES: Mapping[str, Callable[[], EvictionPolicy]] = {"lru": Lru}


def make_policy(name: str) -> EvictionPolicy:
    """A new policy by its name.

    Raises:
        ValueError: no such policy; the text lists the known ones.
    """
    if name not in POLICIES:
        known = ", ".join(sorted(POLICIES))
        raise ValueError(f"unknown eviction policy {name!r}; known: {known}")
    return POLICIES[name]()
