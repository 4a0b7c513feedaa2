"""The parts of a large group, a tenth of them judged at each step. Pure."""

from handlers.slots import STEP_NS, TURNS, turn_of
from handlers.utilization.gpu_state import PartKey
from handlers.utilization.means import (
    Evidence,
    GroupParts,
    Means,
    Part,
    Resource,
    Rows,
    means_of,
)

LARGE_PARTS = 1_000
"""A group of more is judged by tenths: its means at once would hold up messages for 2 ms, and
those of 10,000 nodes with eight GPUs for 200."""


class Tenths:
    """What a group's judgement rests on, found beforehand, a tenth of it every 0.5 s.

    All parts of a node are of one tenth, the same everywhere. A mean is that of the window that
    ended at the last step of its tenth, up to 4.5 s before the judgement, whenever it is found:
    beforehand, or, of a tenth that nobody asked for, at the judgement. So whoever takes over
    judges alike.
    """

    def __init__(self, parts: GroupParts, names: Rows, span_ns: int) -> None:
        self._parts, self._names, self._span_ns = parts, names, span_ns
        self._tenths: list[GroupParts] = [({}, {}, {}) for _ in range(TURNS)]
        self._found: list[tuple[int, Means]] = [(0, {})] * TURNS
        for kind, of_kind in enumerate(parts):
            for source, part in of_kind.items():
                self.add(kind, source, part)

    def add(self, kind: int, source: PartKey, part: Part) -> None:
        """Another one, which the group has."""
        self._tenths[turn_of(source[0])][kind][source] = part

    def find(self, ns: int) -> None:
        """The means of the tenth whose step is at `ns`, if any."""
        step, rest = divmod(ns, STEP_NS)
        if not rest:
            self._means(step % TURNS, ns)

    def means(self, now_ns: int) -> Means:
        """Those of all parts."""
        last = now_ns // STEP_NS
        together: dict[Resource | Evidence, dict[str | None, float]] = {}
        for step in range(last - TURNS + 1, last + 1):
            for name, of_parts in self._means(step % TURNS, step * STEP_NS).items():
                together.setdefault(name, {}).update(of_parts)
        return together

    def _means(self, turn: int, ns: int) -> Means:
        found_ns, means = self._found[turn]
        if found_ns == ns:
            return means
        means = means_of(self._tenths[turn], self._names, ns - self._span_ns, ns, self._parts)
        self._found[turn] = ns, means
        return means


def is_large(parts: GroupParts) -> bool:
    """Whether a group is to be judged by tenths."""
    return sum(map(len, parts)) > LARGE_PARTS
