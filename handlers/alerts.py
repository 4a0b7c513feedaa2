"""Alerts from rules: raised after a hold, updated, cleared with hysteresis, each once."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import msgspec

from handlers.levels import RANK
from handlers.metric_path import MetricPath
from handlers.settings import AlertRule, AlertSettings
from handlers.window import ExpiringDict
from schemas.analysis import Alert, Scope, Severity
from schemas.engines import EngineMetrics
from schemas.message import Message
from schemas.metrics import GpuMetrics, HostMetrics
from schemas.protocols import Emit, Moment
from schemas.units import SECOND_NS, instant, token

Metrics: TypeAlias = HostMetrics | GpuMetrics | EngineMetrics
Transition: TypeAlias = Literal["raised", "updated", "cleared"]


class _Rule:
    """A rule with its paths resolved."""

    def __init__(self, rule: AlertRule) -> None:
        self.settings = rule
        self.metric = MetricPath(rule.metric)
        self.base = MetricPath(rule.relative_to) if rule.relative_to else None
        if self.base is not None and self.base.message_type is not self.metric.message_type:
            raise ValueError(f"alert rule {rule.name}: relative_to is of another message")
        self.for_ns = int(rule.for_seconds * SECOND_NS)
        self._sign = 1 if rule.comparison == ">=" else -1
        limits: dict[Severity, float | None] = {"warning": rule.warning, "critical": rule.critical}
        self._limits = {name: limit for name, limit in limits.items() if limit is not None}

    def thresholds(self, message: Message) -> Mapping[Severity, float] | None:
        """The threshold of each severity for `message`; None when its base was not measured."""
        if self.base is None:
            return self._limits
        base = self.base.read(message)[0][1]
        if base is None:
            return None
        return {severity: base + limit for severity, limit in self._limits.items()}

    def holds(self, value: float, threshold: float) -> bool:
        """Whether `value` is at the threshold or on its bad side."""
        return self._sign * value >= self._sign * threshold

    def clear_threshold(self, threshold: float) -> float:
        """Where a severity ends again. Rounded, so that 0.95 - 0.05 is 0.9."""
        return round(threshold - self._sign * self.settings.clear_margin, 9)


class AlertsHandler:
    """Evaluates every rule on every sample of its message.

    A severity is reached when its condition held for `for_seconds` without a sample to the
    contrary and without a gap of `gap_seconds`; it ends when the value is past its threshold by
    `clear_margin`. A value that is not measured neither raises nor clears. An open alert
    outlives the window in the snapshot.
    """

    name = "alerts"
    scope: Scope = "node"
    consumes: tuple[type[Message], ...] = (HostMetrics, GpuMetrics, EngineMetrics)

    def __init__(self, settings: AlertSettings) -> None:
        self._rules: dict[type[Message], list[_Rule]] = defaultdict(list)
        for settings_rule in settings.rules:
            rule = _Rule(settings_rule)
            self._rules[rule.metric.message_type].append(rule)
        gap_ns = int(settings.gap_seconds * SECOND_NS)
        longest_ns = max((int(r.for_seconds * SECOND_NS) for r in settings.rules), default=0)
        self.window_ns = longest_ns + gap_ns
        # Since when the condition of each severity has held.
        self._since: ExpiringDict[tuple[str, str], dict[Severity, int]] = ExpiringDict(gap_ns)
        self._open: ExpiringDict[tuple[str, str], Alert] = ExpiringDict(
            int(settings.forget_seconds * SECOND_NS)
        )

    def handle(self, message: Metrics, now: Moment) -> list[Emit]:
        """Raise, update or clear what this sample decides."""
        emits = []
        for rule in self._rules[type(message)]:
            thresholds = rule.thresholds(message)
            if thresholds is None:
                continue
            mildest = next(iter(thresholds.values()))
            for part, value in rule.metric.read(message):
                if value is None:
                    continue
                if not (self._open or self._since or rule.holds(value, mildest)):
                    continue  # nothing here is bad, or was: nearly always
                alert = self._judge(rule, message, part, float(value), thresholds, now)
                if alert is not None:
                    emits.append(_emit(alert, now))
        return emits

    def tick(self, now: Moment) -> Sequence[Emit]:
        """Nothing is decided without a sample."""
        return ()

    def snapshot(self) -> bytes | None:
        """The open alerts, each with the instant of its last sample."""
        return msgspec.json.encode([(ns, alert) for ns, _, alert in self._open.touched()])

    def restore(self, snapshot: bytes) -> None:
        """Take over the open alerts."""
        restored = msgspec.json.decode(snapshot, type=list[tuple[int, Alert]])
        for key, _ in self._open.items():
            self._open.discard(key)
        for ns, alert in restored:
            self._open.put((alert.id, alert.rule), alert, ns)

    def _judge(
        self,
        rule: _Rule,
        message: Metrics,
        part: str | None,
        value: float,
        thresholds: Mapping[Severity, float],
        now: Moment,
    ) -> Alert | None:
        """The transition that this value brings, if any."""
        name = rule.settings.name if part is None else f"{rule.settings.name}-{token(part)}"
        key = (message.node, name)
        reached = self._reached(rule, key, value, thresholds, now.ns)
        before = self._open.get(key, now.ns)
        if before is None:
            if reached is None:
                return None
            before = _new(rule, message, name, part, now)
            transition: Transition = "raised"
        else:
            kept = _kept(rule, before.severity, value, thresholds)
            reached = max(reached, kept, key=lambda severity: RANK[severity])
            if reached == before.severity:
                self._open.put(key, before, now.ns)
                return None
            transition = "cleared" if reached is None else "updated"
        after = _decided(rule, before, transition, reached, value, thresholds, now)
        if transition == "cleared":
            self._open.discard(key)
        else:
            self._open.put(key, after, now.ns)
        return after

    def _reached(
        self,
        rule: _Rule,
        key: tuple[str, str],
        value: float,
        thresholds: Mapping[Severity, float],
        now_ns: int,
    ) -> Severity | None:
        """The worst severity whose condition has held long enough."""
        holding = [s for s, threshold in thresholds.items() if rule.holds(value, threshold)]
        if not holding:
            self._since.discard(key)
            return None
        before = self._since.get(key, now_ns) or {}
        since = {severity: before.get(severity, now_ns) for severity in holding}
        self._since.put(key, since, now_ns)
        reached: Severity | None = None
        for severity, since_ns in since.items():  # warning before critical
            if now_ns - since_ns >= rule.for_ns:
                reached = severity
        return reached


def _kept(
    rule: _Rule, severity: Severity, value: float, thresholds: Mapping[Severity, float]
) -> Severity | None:
    """The worst severity, up to the present one, that `value` has not yet left."""
    kept: Severity | None = None
    for candidate, threshold in thresholds.items():
        has_left = not rule.holds(value, rule.clear_threshold(threshold))
        if RANK[candidate] <= RANK[severity] and not has_left:
            kept = candidate
    return kept


def _new(rule: _Rule, message: Metrics, name: str, part: str | None, now: Moment) -> Alert:
    """An alert of this instant; `_decided` fills in what the value says."""
    return Alert(
        transition="raised",
        severity="info",
        scope="node",
        id=message.node,
        rule=name,
        part=part,
        alert_id=f"node.{message.node}.{name}.{now.ns}",
        text="",
        metric=rule.metric.text,
        value=None,
        threshold=0.0,
        clear_threshold=0.0,
        for_seconds=rule.settings.for_seconds,
        raised_at=instant(now.ns),
        decided_at=instant(now.ns),
        pool=message.pool,
        simulated=message.simulated,
    )


def _decided(
    rule: _Rule,
    alert: Alert,
    transition: Transition,
    severity: Severity | None,
    value: float,
    thresholds: Mapping[Severity, float],
    now: Moment,
) -> Alert:
    """`alert` after this transition; a cleared one keeps the severity it had."""
    severity = severity or alert.severity
    # An alert taken over may have a severity that its rule no longer has.
    threshold = thresholds.get(severity, alert.threshold)
    # An alert clears where its lowest severity ends.
    clear_threshold = rule.clear_threshold(next(iter(thresholds.values())))
    where = alert.id if alert.part is None else f"{alert.part} of {alert.id}"
    side = "above" if rule.settings.comparison == ">=" else "below"
    if transition == "cleared":
        text = f"{alert.metric} of {where} is back at {value:.4g} (clears past {clear_threshold:g})"
    else:
        text = f"{alert.metric} of {where} is {value:.4g}, at or {side} {threshold:g} ({severity})"
        if rule.for_ns:
            text += f" for {rule.settings.for_seconds:g} s"
    return msgspec.structs.replace(
        alert,
        transition=transition,
        severity=severity,
        text=text,
        value=value,
        threshold=threshold,
        clear_threshold=clear_threshold,
        decided_at=instant(now.ns),
    )


def _emit(alert: Alert, now: Moment) -> Emit:
    """The id of an update carries its instant: the same severity can come more than once."""
    message_id = f"{alert.alert_id}.{alert.transition}.{alert.severity}"
    return Emit(alert, f"{message_id}.{now.ns}" if alert.transition == "updated" else message_id)
