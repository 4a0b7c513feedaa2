"""The last value of every member of a pool or of the fleet, put together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from handlers.alerting.rule import Group, Rule
from handlers.alerting.subject import part_of, source_of
from handlers.window import MAX_ENTRIES
from schemas.message import Message

_OF: Mapping[str, Callable[[Sequence[float]], float]] = {
    "mean": lambda values: sum(values) / len(values),
    "min": min,
    "max": max,
    "sum": sum,
}

Member = tuple[Any, str | None]
"""Its node, and which part of that."""


class Aggregates:
    """Keeps what members last said, for `keep_ns`; of at most `MAX_ENTRIES` of them."""

    def __init__(self, keep_ns: int) -> None:
        self._keep_ns = keep_ns
        self._members: dict[tuple[str, int, str], dict[Member, tuple[int, float, bool]]] = {}
        self._count = 0

    def add(self, group: Group, message: Message, id_: str, ns: int) -> None:
        """Take what `message` says for pool or fleet `id_`."""
        source, node = source_of(message), getattr(message, "node", None)
        simulated = bool(getattr(message, "simulated", False))
        for holder in group.holders(message) or ():
            member = (node, part_of(source, holder, group.element))
            for rule, value in zip(group.rules, group.values(holder), strict=False):
                if value is None:
                    continue
                number = float(value) if rule.convert is None else rule.convert(value)
                members = self._members.setdefault((rule.name, rule.version, id_), {})
                last = members.get(member)
                if last is None:
                    if self._count >= MAX_ENTRIES:
                        continue
                    self._count += 1
                elif last[0] == ns and rule.sign * last[1] > rule.sign * number:
                    continue  # named twice in this message: the worst counts
                members[member] = (ns, number, simulated)

    def values(self, rules: Mapping[str, Rule], ns: int) -> Iterator[tuple[Rule, str, float, bool]]:
        """Rule, pool or fleet, aggregate, and whether a simulator had part in it.

        What is too old, or of a rule that is not in force any more, is forgotten.
        """
        self._count = 0
        for key, members in list(self._members.items()):
            name, version, id_ = key
            rule = rules.get(name)
            for member in [m for m, last in members.items() if ns - last[0] >= self._keep_ns]:
                del members[member]
            if not members or rule is None or rule.version != version:
                del self._members[key]
                continue
            self._count += len(members)
            values = [number for _, number, _ in members.values()]
            aggregate = _OF[rule.settings.aggregate or "mean"](values)
            yield rule, id_, aggregate, any(simulated for _, _, simulated in members.values())
