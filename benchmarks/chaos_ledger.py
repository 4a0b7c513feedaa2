"""What was asked of a cache, and so what may, must and must not be read of it. Pure.

Instants are seconds of one clock. Writes overlap, and many are never answered: only what follows
from the order of those that do not overlap is held against the cache.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal

from schemas.digest import digest_of

UNANSWERED_SECONDS = 10.0
"""What was given up may still be on its way for so long."""
SHOWN_WRITES = 6
Kind = Literal["put", "delete", "delete tag", "clear"]


@dataclasses.dataclass(slots=True, eq=False)
class Write:
    """From when it was asked until it was answered. `tag`: the value's, or the one deleted.

    `over`: from then on it cannot take effect any more. `erased_by`: an acknowledged write that
    began after that, and took it away.
    """

    number: int
    kind: Kind
    key: str
    began: float
    tag: str = ""
    ttl_seconds: float = math.inf
    acknowledged: bool = False
    over: float = math.inf
    erased_by: "Write | None" = None
    is_evicted: bool = False
    expires: float = math.inf
    """As its last acknowledged eviction says."""

    def erases(self, other: "Write") -> bool:
        """Whether nothing is left of `other` where this one comes later."""
        if self.kind == "clear":
            return True
        if self.kind == "delete tag":
            return other.tag == self.tag and other.kind in ("put", "delete tag")
        return other.key == self.key and other.kind in ("put", "delete")

    def __str__(self) -> str:
        what = " ".join(part for part in (self.kind, self.key, self.tag) if part)
        said = f"acknowledged {self.over:.3f}" if self.acknowledged else "not acknowledged"
        evicted = ", eviction acknowledged" if self.is_evicted else ""
        return f"#{self.number} {what}, began {self.began:.3f}, {said}{evicted}"


class Ledger:
    """Every write; who reads is judged by it."""

    def __init__(self) -> None:
        self._count = 0
        self._standing: set[Write] = set()
        self._puts: dict[str, Write] = {}
        self._history: dict[str, list[Write]] = {}
        self.evicted: set[Write] = set()
        """Puts whose eviction was acknowledged at least once."""

    def begin(self, kind: Kind, began: float, *, key: str = "", tag: str = "") -> Write:
        """It is being asked now."""
        self._count += 1
        write = Write(self._count, kind, key, began, tag)
        self._standing.add(write)
        if key:
            self._history.setdefault(key, []).append(write)
            del self._history[key][:-SHOWN_WRITES]
        return write

    def holds(self, write: Write, value: bytes, ttl_seconds: float = math.inf) -> None:
        """`write` is a put of this value, which nobody else puts, to live so long."""
        write.ttl_seconds = ttl_seconds
        self._puts[digest_of(value)] = write

    def acknowledge(self, write: Write, now: float) -> None:
        """It was answered: what is certainly older, and of which it leaves nothing, is gone."""
        write.acknowledged, write.over = True, now
        for older in [one for one in self._standing if one.over < write.began]:
            if write.erases(older):
                older.erased_by = older.erased_by or write
                if write.kind != "delete tag" or older.kind != "put":
                    self._standing.discard(older)
                # Else it is gone, but what it has taken the place of still is, too.

    def give_up(self, write: Write, now: float) -> None:
        """It was refused, or not answered: it may have been done, or be done soon."""
        write.over = now + UNANSWERED_SECONDS

    def evict(self, key: str, digest: str, expires: float) -> str | None:
        """The eviction of a value with this digest was acknowledged; what is wrong with it."""
        put = self._puts.get(digest)
        if put is None or put.key != key:
            return f"{key}: a value was evicted that was never put there"
        put.is_evicted, put.expires = True, expires
        self.evicted.add(put)
        return None

    def put_of(self, value: bytes) -> Write | None:
        """The put of this value."""
        return self._puts.get(digest_of(value))

    def judge(self, key: str, value: bytes, began: float, who: str) -> str | None:
        """What is wrong with reading `value`, in a request that began at this instant."""
        put = self.put_of(value)
        if put is None:
            return self._tell(f"{who} has {len(value)} bytes that nobody put", key)
        if put.key != key:
            return self._tell(f"{who} has the value of another key: {put}", key)
        if put.erased_by is not None and put.erased_by.over < began:
            return self._tell(f"{who} gave back {put}, though {put.erased_by}", key)
        if began > put.over + put.ttl_seconds:
            return self._tell(f"{who} gave back {put}, which lived {put.ttl_seconds:g} s", key)
        return None

    def required(self, now: float) -> Iterable[Write]:
        """Puts that must be read: evicted, and nothing asked later can have outdated them."""
        for put in self.evicted & self._standing:
            if put.erased_by is None and now < put.expires and not self._is_in_doubt(put):
                yield put

    def _is_in_doubt(self, put: Write) -> bool:
        return any(
            other is not put and other.over > put.began and other.erases(put)
            for other in self._standing
        )

    def lost(self, put: Write) -> str:
        """The account of a required put that is not there."""
        return self._tell(f"lost: {put}", put.key)

    def _tell(self, what: str, key: str) -> str:
        writes = "".join(f"\n      {write}" for write in self._history.get(key, ()))
        return f"{key}: {what}{writes}"
