"""Which silence is upon an alert, found without looking at each of hundreds. Pure."""

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase, translate
from typing import NamedTuple

from schemas.alerts import Silence
from schemas.analysis import Alert
from schemas.units import to_ns

MAX_NAMES = 1024
"""Of rules, for which it is remembered which silences are upon them."""
_PATTERN = re.compile(r"[*?\[]")


class _Entry(NamedTuple):
    """A silence, and where it stands among all: the first of those upon an alert counts."""

    rank: int
    begin_ns: int
    end_ns: int
    silence: Silence
    is_upon_id: Callable[[str], object] | None
    """None: it is upon any, or upon one that is looked up."""


class _OfRule(NamedTuple):
    """The silences of now upon a rule, in their order."""

    by_id: dict[str, list[_Entry]]
    """Those of one node or pool by name."""
    others: list[_Entry]


class Silences:
    """The silences of a policy. Of several upon an alert the one that ends last counts.

    What holds between two edges, at which a silence begins or ends, is remembered by the rule's
    name. So to ask costs O(1), and a look at each silence of a pattern of nodes.
    """

    def __init__(self, silences: Sequence[Silence]) -> None:
        ranked = sorted(silences, key=lambda one: (one.ends_at, one.silence_id), reverse=True)
        self._entries = [
            _Entry(rank, to_ns(one.starts_at), to_ns(one.ends_at), one, _matcher(one.id))
            for rank, one in enumerate(ranked)
        ]
        self._edges = sorted({ns for one in self._entries for ns in (one.begin_ns, one.end_ns)})
        self._begin_ns = self._end_ns = -math.inf
        """Between which edges the last question was."""
        self._active: list[_Entry] = []
        self._by_name: dict[str, _OfRule] = {}

    def upon(self, alert: Alert, ns: int) -> str | None:
        """The id of the silence upon an alert at `ns`."""
        if not self._entries:
            return None
        if not self._begin_ns <= ns < self._end_ns:
            self._turn_to(ns)
        name = alert.rule.split("-", 1)[0]
        of_rule = self._by_name.get(name)
        if of_rule is None:
            if len(self._by_name) >= MAX_NAMES:
                self._by_name.clear()
            of_rule = self._by_name[name] = _of_rule(self._active, name)
        scope, id_ = alert.scope, alert.id
        first: _Entry | None = None
        for one in of_rule.by_id.get(id_, ()):
            if one.silence.scope in {None, scope}:
                first = one
                break
        for one in of_rule.others:
            if first is not None and one.rank > first.rank:
                break
            is_upon = one.is_upon_id is None or one.is_upon_id(id_)
            if is_upon and one.silence.scope in {None, scope}:
                first = one
                break
        return None if first is None else first.silence.silence_id

    def next_edge_ns(self, ns: int) -> float:
        """When a silence begins or ends next, after `ns`."""
        place = bisect_right(self._edges, ns)
        return self._edges[place] if place < len(self._edges) else math.inf

    def _turn_to(self, ns: int) -> None:
        place = bisect_right(self._edges, ns)
        self._begin_ns = self._edges[place - 1] if place else -math.inf
        self._end_ns = self.next_edge_ns(ns)
        self._active = [one for one in self._entries if one.begin_ns <= ns < one.end_ns]
        self._by_name.clear()


def _matcher(pattern: str) -> Callable[[str], object] | None:
    if pattern == "*" or _PATTERN.search(pattern) is None:
        return None
    return re.compile(translate(pattern)).match


def _of_rule(active: Sequence[_Entry], name: str) -> _OfRule:
    found = _OfRule({}, [])
    for one in active:
        if fnmatchcase(name, one.silence.rule):
            is_named = one.is_upon_id is None and one.silence.id != "*"
            if is_named:
                found.by_id.setdefault(one.silence.id, []).append(one)
            else:
                found.others.append(one)
    return found
