"""An alert rule ready to judge: paths resolved, thresholds in order."""

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from handlers.alerting.metric_path import OF_THE_FLEET, MetricPath, Place, holders
from schemas.alerts import AlertRule
from schemas.analysis import Scope, Severity
from schemas.message import Message
from schemas.units import SECOND_NS

NODE_AGE = "host.age_seconds"
"""Not a field: how long a node has sent no host metrics."""
NODE_STALE = "node_stale"
"""The rule on it."""


class Rule:
    """A rule with its paths resolved.

    `version` is its revision in `fleet-config`, or 0; `since_ns` when it came into force, 0 from
    the start.

    Raises:
        ValueError: a path leads nowhere, or the rule asks for what cannot be; says which field.
    """

    def __init__(self, settings: AlertRule, version: int = 0, since_ns: int = 0) -> None:
        self.settings = settings
        self.version = version
        self.since_ns = since_ns
        self.name = settings.name
        self.is_scaled = settings.relative == "times"
        self.sign = 1.0 if settings.comparison == ">=" else -1.0
        self.limits: Mapping[Severity, float] = dict(settings.thresholds())
        self.mildest = next(iter(self.limits.values()))
        is_ceiling = settings.comparison == ">="
        self.bounds = (-math.inf, self.mildest) if is_ceiling else (self.mildest, math.inf)
        """A value between them is fine, where the rule compares numbers."""
        self.for_ns = int(settings.for_seconds * SECOND_NS)
        self.clear_for_ns = int(settings.clear_for_seconds * SECOND_NS)
        self.metric: MetricPath | None = None
        self.convert: Callable[[Any], float] | None = None
        self.base_field: str | None = None
        if (settings.metric == NODE_AGE) != (settings.name == NODE_STALE):
            raise ValueError(f"alert rule {self.name}: {NODE_AGE} belongs to the rule {NODE_STALE}")
        if settings.metric == NODE_AGE:
            self._check_age()
            return
        try:
            self.metric = MetricPath(settings.metric)
            self.convert = self.metric.convert
            if settings.relative_to is not None:
                base = MetricPath(settings.relative_to)
                if base.place != self.metric.place or base.convert is not None:
                    raise ValueError(
                        f"relative_to {base.text!r} is not a number beside {settings.metric!r}"
                    )
                self.base_field = base.field
        except ValueError as error:
            raise ValueError(f"alert rule {self.name}: {error}") from None
        if self.metric.message_type in OF_THE_FLEET:
            if settings.scope != "fleet":
                raise ValueError(f"alert rule {self.name}: scope of caches and streams is fleet")
        elif settings.scope != "node" and settings.aggregate is None:
            raise ValueError(
                f"alert rule {self.name}: scope {settings.scope} needs an aggregate: "
                "mean, min, max or sum"
            )
        if settings.relative_to is None:
            self._check_reach(self.metric)

    def _check_reach(self, metric: MetricPath) -> None:
        """A threshold that the metric cannot reach, 95 of a share say, would never be told."""
        most = math.inf if self.settings.aggregate == "sum" else metric.most
        bad, good = (most, metric.least) if self.sign > 0 else (metric.least, most)
        for severity, limit in self.limits.items():
            if self.sign * limit > self.sign * bad:
                raise ValueError(
                    f"alert rule {self.name}: {severity} is {limit:g}, but {metric.text} is "
                    f"never beyond {bad:g}"
                )
            if self.sign * self.clear_threshold(limit) <= self.sign * good < self.sign * limit:
                raise ValueError(
                    f"alert rule {self.name}: clear_margin is {self.settings.clear_margin:g}, so "
                    f"{severity} would never end: {metric.text} is never beyond {good:g}"
                )

    def _check_age(self) -> None:
        given = self.settings
        plain = AlertRule(
            name=self.name,
            metric=NODE_AGE,
            summary=given.summary,
            enabled=given.enabled,
            info=given.info,
            warning=given.warning,
            critical=given.critical,
        )
        if plain != given or len(self.limits) != 1 or self.mildest < 1:
            raise ValueError(
                f"alert rule {self.name}: give it one threshold, of 1 s or more, and no more than "
                "that but a summary"
            )

    def is_fine(self, holder: Any, value: Any) -> bool:  # noqa: ANN401 - a Struct and its field
        """Whether a measured value is on the good side of every threshold, or of unknown ones."""
        number = value if self.convert is None else self.convert(value)
        limit = self.mildest
        if self.base_field is not None:
            base = getattr(holder, self.base_field)
            if base is None or (self.is_scaled and not base):
                return True
            limit = base * limit if self.is_scaled else base + limit
        return self.sign * number < self.sign * limit

    def thresholds(self, holder: Any) -> Mapping[Severity, float] | None:  # noqa: ANN401 - a Struct
        """The threshold of each severity, by the value of `relative_to`; None: not measured."""
        if self.base_field is None:
            return self.limits
        base = getattr(holder, self.base_field)
        if base is None or (self.is_scaled and not base):
            return None
        if self.is_scaled:
            return {severity: base * limit for severity, limit in self.limits.items()}
        return {severity: base + limit for severity, limit in self.limits.items()}

    def worst(self, namesakes: Sequence[Any]) -> Any:  # noqa: ANN401 - Structs
        """Of elements of one name, the one that is furthest beyond most thresholds; the first."""
        return max(namesakes, key=self._badness)

    def _badness(self, holder: Any) -> tuple[int, float]:  # noqa: ANN401 - a Struct
        """How many thresholds hold, and how far the value is beyond the mildest; -1: unknown."""
        value = None if self.metric is None else getattr(holder, self.metric.field)
        thresholds = self.thresholds(holder)
        if value is None or thresholds is None:
            return -1, 0.0
        number = float(value) if self.convert is None else self.convert(value)
        limits = list(thresholds.values())
        holding = sum(self.holds(number, limit) for limit in limits)
        return holding, self.sign * (number - limits[0])

    def holds(self, value: float, threshold: float) -> bool:
        """Whether `value` is at the threshold or on its bad side."""
        return self.sign * value >= self.sign * threshold

    def clear_threshold(self, threshold: float) -> float:
        """Where a severity ends again. Rounded, so that 0.95 - 0.05 is 0.9."""
        return round(threshold - self.sign * self.settings.clear_margin, 9)


class Group:
    """The rules that read fields of the same Struct of a message, which is looked up once."""

    def __init__(self, place: Place, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self.names = frozenset(rule.name for rule in rules)
        self.element = place[2]
        self.holders = holders(place)
        fields = {rule: rule.metric.field for rule in rules if rule.metric is not None}
        self.values = _getter(list(fields.values()))
        bounds: dict[str, tuple[float, float]] = {}
        self._others: list[tuple[Callable[[Any], Any], Rule]] = []
        for rule, field in fields.items():
            if rule.convert is None and rule.base_field is None:
                # Of the rules on one field the narrowest bounds say whether all are fine.
                floor, ceiling = bounds.get(field, (-math.inf, math.inf))
                bounds[field] = max(floor, rule.bounds[0]), min(ceiling, rule.bounds[1])
            else:
                self._others.append((operator.attrgetter(field), rule))
        self._plain: list[tuple[Callable[[Any], Any], float, float]] = [
            (operator.attrgetter(field), *of) for field, of in bounds.items()
        ]

    def is_fine(self, found: Sequence[Any]) -> bool:
        """Whether no value in these Structs is bad: nearly always, and every message has many."""
        if self.element is None:
            return self._is_fine_one(found[0])
        for read, floor, ceiling in self._plain:
            for value in map(read, found):
                if value is not None and not floor < value < ceiling:
                    return False
        for read, rule in self._others:
            for holder in found:
                value = read(holder)
                if value is not None and not rule.is_fine(holder, value):
                    return False
        return True

    def _is_fine_one(self, holder: Any) -> bool:  # noqa: ANN401 - any Struct
        """The same of the only one, without a loop for each rule."""
        for read, floor, ceiling in self._plain:
            value = read(holder)
            if value is not None and not floor < value < ceiling:
                return False
        for read, rule in self._others:
            value = read(holder)
            if value is not None and not rule.is_fine(holder, value):
                return False
        return True


def _getter(fields: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """A function that reads these fields, in one call."""
    match fields:
        case []:
            return lambda holder: ()
        case [field]:
            return lambda holder: (getattr(holder, field),)
    return operator.attrgetter(*fields)


def grouped(rules: Iterable[Rule], scope: Scope) -> Mapping[type[Message], Sequence[Group]]:
    """The groups of each message type that the rules of a scope read."""
    by_place: dict[Place, list[Rule]] = {}
    for rule in rules:
        if rule.metric is not None and rule.settings.scope == scope and rule.settings.enabled:
            by_place.setdefault(rule.metric.place, []).append(rule)
    by_type: dict[type[Message], list[Group]] = {}
    for place, those in by_place.items():
        by_type.setdefault(place[0], []).append(Group(place, those))
    return by_type
