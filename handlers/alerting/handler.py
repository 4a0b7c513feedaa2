"""Alerts from rules: on every sample of a node, on aggregates of pools and of the fleet."""

from collections.abc import Mapping, Sequence
from typing import Any

from handlers.alerting.aggregates import Aggregates
from handlers.alerting.book import AlertBook
from handlers.alerting.judge import Judge, PartKey, Track
from handlers.alerting.metric_path import OF_THE_FLEET
from handlers.alerting.rule import Group, Rule
from handlers.alerting.subject import FLEET, Subject, part_of, source_of, subject_of
from handlers.settings import AlertSettings
from schemas.analysis import Scope
from schemas.engines import EngineMetrics
from schemas.message import Message
from schemas.metrics import GpuMetrics, HostMetrics
from schemas.protocols import Emit, Moment
from schemas.units import SECOND_NS


class AlertsHandler:
    """Evaluates the rules of one scope, as they are in force at the instant of each sample.

    Of a node each sample is judged when it comes. Of a pool and of the fleet the last values of
    all members are put together and judged at each tick; caches and streams, which belong to the
    fleet alone, when they come.
    """

    name = "alerts"

    def __init__(self, settings: AlertSettings, book: AlertBook, scope: Scope) -> None:
        self.scope: Scope = scope
        self._of_node = scope == "node"
        self.consumes: tuple[type[Message], ...] = (HostMetrics, GpuMetrics, EngineMetrics)
        if scope == "fleet":
            self.consumes += OF_THE_FLEET
        self.window_ns = int(settings.gap_seconds * SECOND_NS)
        forget_ns = int(settings.forget_seconds * SECOND_NS)
        self._judge = Judge(book, scope, self.window_ns, forget_ns)
        self._aggregates = Aggregates(self.window_ns)

    def handle(self, message: Any, now: Moment) -> Sequence[Emit]:  # noqa: ANN401 - of `consumes`
        """Raise, update or clear what this sample decides."""
        judge = self._judge
        emits = judge.follow(now) if now.ns >= judge.policy.ends_ns else []
        groups = judge.groups.get(type(message), ())
        if not groups and not self._of_node:
            return emits
        if self._of_node:
            emits += self._judged(groups, message, message.node, now)
            if type(message) is HostMetrics and judge.warm(message.node) is not None:
                emits += judge.end_silent(message.node, now)
        elif type(message) in OF_THE_FLEET:
            emits += self._judged(groups, message, FLEET, now)
        else:
            id_ = FLEET if self.scope == "fleet" else message.pool
            for group in groups:
                self._aggregates.add(group, message, id_, now.ns)
        return emits

    def _judged(
        self, groups: Sequence[Group], message: Message, id_: str, now: Moment
    ) -> list[Emit]:
        """What the rules say to a message: nearly always nothing, and quickly."""
        emits: list[Emit] = []
        warm = self._judge.warm(id_)
        tracked = _tracked(warm, message) if warm else ()
        for group in groups:
            found = group.holders(message)
            if found is None:
                continue
            # Of what is fine only a track on it hears: not one of another GPU, or group.
            if (tracked and not group.names.isdisjoint(tracked)) or not group.is_fine(found):
                emits += self._seen(group, found, message, id_, now)
        return emits

    def _seen(
        self, group: Group, found: Sequence[Any], message: Message, id_: str, now: Moment
    ) -> list[Emit]:
        """What the rules of one group say to what was found."""
        warm = self._judge.warm(id_)
        emits: list[Emit] = []
        source = source_of(message)
        named = [(part_of(source, holder, group.element), holder) for holder in found]
        parts = {part for part, _ in named}
        has_namesakes = len(parts) < len(named)
        for part, holder in named:
            for rule, value in zip(group.rules, group.values(holder), strict=False):
                is_warm = warm is not None and (rule.name, part) in warm
                if has_namesakes and holder is not _worst(rule, part, named):
                    continue
                if value is None or (not is_warm and rule.is_fine(holder, value)):
                    continue
                thresholds = rule.thresholds(holder)
                if thresholds is None:
                    continue
                subject = subject_of(message, id_, source, part, holder)
                number = float(value) if rule.convert is None else rule.convert(value)
                emit = self._judge.see(rule, subject, number, thresholds, now)
                if emit is not None:
                    emits.append(emit)
        if group.element is not None and warm is not None:
            emits += self._judge.end_absent(id_, source, group.names, parts, now)
        return emits

    def tick(self, now: Moment) -> Sequence[Emit]:
        """Judge the aggregates; begin and end silences; end what is long gone."""
        emits = self._judge.tick(now)
        if self.scope == "node":
            return emits
        rules = self._judge.policy.rules
        for rule, id_, value, simulated in self._aggregates.values(rules, now.ns):
            pool = id_ if self.scope == "pool" else None
            subject = Subject(id=id_, pool=pool, simulated=simulated)
            emit = self._judge.see(rule, subject, value, rule.limits, now)
            if emit is not None:
                emits.append(emit)
        return emits + self._judge.end_all_silent(now)

    def snapshot(self) -> bytes | None:
        """Open alerts, and conditions that hold."""
        return self._judge.snapshot()

    def restore(self, snapshot: bytes) -> None:
        """Take them over."""
        self._judge.restore(snapshot)


def _worst(rule: Rule, part: str | None, named: Sequence[tuple[str | None, Any]]) -> Any:  # noqa: ANN401 - a Struct
    """Of a part that a message names twice, as two mounts at one place, what counts."""
    return rule.worst([holder for name, holder in named if name == part])


def _tracked(warm: Mapping[PartKey, Track], message: Message) -> Sequence[str]:
    """The rules that have a track on a part that `message` tells of."""
    source = source_of(message)
    return [track.rule for track in warm.values() if track.source == source]
