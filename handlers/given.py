"""Advice that was given and stands, one for each pool: each decision is told once."""

from collections.abc import Callable
from typing import Literal

import msgspec

from schemas.protocols import Emit, Moment
from schemas.scaling import Decision, Recommendation
from schemas.units import instant, to_ns


def closing(
    advice: Recommendation, verdict: Literal["superseded", "expired"], reason: str, now: Moment
) -> Emit:
    """That `advice` does not stand any more."""
    decision = Decision(
        verdict=verdict,
        pool=advice.pool,
        recommendation_id=advice.recommendation_id,
        decided_at=instant(now.ns),
        decided_by="handlers",
        reason=reason,
        simulated=advice.simulated,
    )
    return Emit(decision, f"{advice.recommendation_id}.{verdict}")


class GivenState(msgspec.Struct):
    """What outlives a restart."""

    standing: list[Recommendation] = []
    proposed: dict[str, tuple[str, int]] = {}


class GivenAdvice:
    """The advice of one action that stands, by pool.

    Given anew when it says something else, or after it has expired and still holds. `content` is
    what makes it a decision of its own; figures that move with each measurement are not. What is
    proposed is given, or ended, once that was proposed `times` times in a row.
    """

    def __init__(self, content: Callable[[Recommendation], str], times: int = 1) -> None:
        self._content = content
        self._times = times
        self._standing: dict[str, Recommendation] = {}
        self._proposed: dict[str, tuple[str, int]] = {}

    def get(self, pool: str) -> Recommendation | None:
        """What stands for `pool`."""
        return self._standing.get(pool)

    def propose(self, pool: str, new: Recommendation | None, now: Moment) -> list[Emit]:
        """Take what is found for `pool` now; None: nothing is worth advising."""
        content = "" if new is None else self._content(new)
        before, times = self._proposed.get(pool, ("", 0))
        times = min(self._times, times + 1 if before == content else 1)
        self._proposed[pool] = (content, times)
        if times < self._times:
            return []
        if new is None:
            del self._proposed[pool]
            return self.withdraw(pool, "nothing of it holds any more", now)
        return self.give(new, now)

    def forget(self, pool: str, now: Moment) -> list[Emit]:
        """The pool is gone."""
        self._proposed.pop(pool, None)
        return self.withdraw(pool, "the pool is gone", now)

    def give(self, new: Recommendation, now: Moment) -> list[Emit]:
        """Give `new`, in place of what stands, unless that says the same."""
        old = self._standing.get(new.pool)
        if old is not None and self._content(old) == self._content(new):
            return []
        replaced = old.recommendation_id if old else None
        new = msgspec.structs.replace(new, supersedes=replaced)
        self._standing[new.pool] = new
        emits = [Emit(new, new.recommendation_id)]
        if old is not None:
            emits.append(closing(old, "superseded", f"by {new.recommendation_id}", now))
        return emits

    def withdraw(self, pool: str, reason: str, now: Moment) -> list[Emit]:
        """End the advice for `pool` before its time, if any stands."""
        old = self._standing.pop(pool, None)
        return [] if old is None else [closing(old, "expired", reason, now)]

    def expire(self, now: Moment) -> list[Emit]:
        """End what has expired."""
        over = [pool for pool, one in self._standing.items() if to_ns(one.expires_at) <= now.ns]
        return [
            emit
            for pool in sorted(over)
            for emit in self.withdraw(pool, "not carried out in time", now)
        ]

    def pools(self) -> list[str]:
        """Those for which advice stands."""
        return sorted(self._standing)

    def snapshot(self) -> GivenState:
        """What stands, by pool, and what was proposed of late."""
        return GivenState([self._standing[pool] for pool in self.pools()], self._proposed)

    def restore(self, state: GivenState) -> None:
        """Take over what stood."""
        self._standing = {advice.pool: advice for advice in state.standing}
        self._proposed = dict(state.proposed)
