"""The rule `node_stale`: a node that no longer publishes host metrics."""

from collections.abc import Sequence

import msgspec

from handlers.alerting.book import AlertBook, Policy
from handlers.alerting.judge import Because, emit
from handlers.alerting.rule import NODE_AGE, NODE_STALE, Rule
from handlers.settings import AlertSettings
from handlers.window import ExpiringDict
from schemas.alerts import AlertRule
from schemas.analysis import Alert, Scope
from schemas.message import Message
from schemas.metrics import HostMetrics
from schemas.protocols import Emit, Moment
from schemas.units import SECOND_NS, instant


def stale_rule(settings: AlertSettings) -> AlertRule:
    """The rule as the settings have it."""
    return AlertRule(
        name=NODE_STALE,
        metric=NODE_AGE,
        summary="Node publishes no host metrics",
        critical=settings.stale_seconds,
    )


class _Seen(msgspec.Struct, frozen=True, gc=False):
    """The last host metrics of one node: when, and how long it may be silent at least."""

    ns: int
    patience_ns: int
    pool: str | None
    simulated: bool


class _State(msgspec.Struct, frozen=True):
    seen: dict[str, _Seen]
    open: dict[str, Alert]


class StaleNodesHandler:
    """Raised once on the first tick after the limit, cleared by the node's next host metrics.

    The limit is the rule's threshold, or `stale_intervals` of the node's own interval when that
    is longer; a node whose agent stopped on purpose (`leaving`) has none. `raised_at` is the
    instant at which the limit was passed or its rule began, whatever tick saw it, so every
    replica and every rebuild gives the alert the same id. Nodes seen and open alerts outlive the
    window in the snapshot: a node that dies while no handler runs is still found. Rules and
    silences are looked at on ticks.
    """

    name = "stale_nodes"
    scope: Scope = "node"
    consumes: tuple[type[Message], ...] = (HostMetrics,)

    def __init__(self, settings: AlertSettings, book: AlertBook) -> None:
        self._settings = settings
        self._book = book
        self._policy = book.first
        self._forget_ns = int(settings.forget_seconds * SECOND_NS)
        self.window_ns = int(settings.stale_seconds * SECOND_NS)
        self._seen: ExpiringDict[str, _Seen] = ExpiringDict(self._forget_ns)
        self._open: dict[str, Alert] = {}  # only of nodes in _seen
        self._silenced: tuple[Policy | None, float] = (None, 0.0)
        """By which policy they were last looked at for silences, and when one begins or ends."""

    def handle(self, message: HostMetrics, now: Moment) -> Sequence[Emit]:
        """The node is alive: clear its alert."""
        before = self._seen.get(message.node, now.ns)
        # By then the node is forgotten anyway, and nanoseconds of more may not fit the snapshot.
        forget_seconds = self._settings.forget_seconds
        patience_seconds = self._settings.stale_intervals * message.interval_seconds
        patience_seconds = forget_seconds if message.leaving else patience_seconds
        patience_ns = int(min(patience_seconds, forget_seconds) * SECOND_NS)
        seen = _Seen(now.ns, patience_ns, message.pool, message.simulated)
        self._seen.put(message.node, seen, now.ns)
        alert = self._open.pop(message.node, None)
        if alert is None:
            return ()
        age_seconds = None if before is None else (now.ns - before.ns) / SECOND_NS
        text = f"{message.node} sends host metrics again"
        if age_seconds is not None:
            text = f"{message.node} is back after {age_seconds:.0f} s without host metrics"
        return (emit(_cleared(alert, self._policy, "recovered", text, now, age_seconds), now),)

    def tick(self, now: Moment) -> Sequence[Emit]:
        """Raise what became stale, and end what is judged no more, by the policy of now."""
        self._policy = policy = self._book.at(now.ns)
        rule = policy.rules.get(NODE_STALE)
        if rule is not None and not rule.settings.enabled:
            rule = None
        self._seen.expire(now.ns)
        emits = self._reviewed(policy, rule, now)
        if rule is None:
            return emits
        rule_ns = int(rule.mildest * SECOND_NS)
        for node, last in sorted(self._seen.untouched(now.ns - rule_ns)):
            limit_ns = max(rule_ns, last.patience_ns)
            if now.ns - last.ns >= limit_ns and node not in self._open:
                self._open[node] = _raised(node, last, limit_ns, rule, policy, now.ns)
                emits.append(emit(self._open[node], now))
        return emits

    def _reviewed(self, policy: Policy, rule: Rule | None, now: Moment) -> list[Emit]:
        """What became of the open alerts: rules, silences and memory end."""
        emits = []
        before, edge_ns = self._silenced
        # Of thousands of nodes that are away none is silenced by time alone but at an edge.
        is_edge = policy is not before or now.ns >= edge_ns
        if is_edge:
            self._silenced = (policy, policy.next_silence_ns(now.ns))
        for node, alert in list(self._open.items()):
            because: Because | None = None
            if self._seen.get(node, now.ns) is None:
                because, text = "no_news", f"{node} has been away too long to be waited for"
            elif rule is None:
                because, text = (
                    "rule_removed",
                    f"{node} is not judged any more: {NODE_STALE} is off",
                )
            elif rule.version != alert.rule_version:
                because, text = "rule_changed", f"{node} is judged anew: {NODE_STALE} was changed"
            elif is_edge and (silenced_by := policy.silence_of(alert, now.ns)) != alert.silenced_by:
                self._open[node] = msgspec.structs.replace(
                    alert,
                    transition="updated",
                    silenced_by=silenced_by,
                    decided_at=instant(now.ns),
                )
                emits.append(emit(self._open[node], now))
            if because is not None:
                del self._open[node]
                emits.append(emit(_cleared(alert, policy, because, text, now, None), now))
        return emits

    def snapshot(self) -> bytes | None:
        """When each node was last seen, and the open alerts."""
        return msgspec.json.encode(_State(dict(self._seen.items()), self._open))

    def restore(self, snapshot: bytes) -> None:
        """Take over both; what the replay saw later than the snapshot stays."""
        state = msgspec.json.decode(snapshot, type=_State)
        replayed = dict(self._seen.items())
        self._seen = ExpiringDict(self._forget_ns)
        newest = {
            node: max(
                (s for s in (state.seen.get(node), replayed.get(node)) if s), key=lambda s: s.ns
            )
            for node in state.seen.keys() | replayed.keys()
        }
        for node, seen in sorted(newest.items(), key=lambda item: item[1].ns):
            self._seen.put(node, seen, seen.ns)
        self._open = dict(state.open)
        self._silenced = (None, 0.0)


def _raised(
    node: str, last: _Seen, limit_ns: int, rule: Rule, policy: Policy, now_ns: int
) -> Alert:
    # Under a rule that came later another alert is raised: one of the same id would be a repeat.
    raised_ns = max(last.ns + limit_ns, rule.since_ns)
    limit_seconds = limit_ns / SECOND_NS
    (severity,) = rule.limits
    alert = Alert(
        transition="raised",
        severity=severity,
        scope="node",
        id=node,
        rule=NODE_STALE,
        alert_id=f"node.{node}.{NODE_STALE}.{raised_ns}",
        text=f"{node} has published no host metrics for {limit_seconds:g} s",
        metric=NODE_AGE,
        value=(now_ns - last.ns) / SECOND_NS,
        threshold=limit_seconds,
        clear_threshold=limit_seconds,
        for_seconds=0.0,
        raised_at=instant(raised_ns),
        decided_at=instant(now_ns),
        pool=last.pool,
        simulated=last.simulated,
        rule_version=rule.version,
    )
    return msgspec.structs.replace(alert, silenced_by=policy.silence_of(alert, now_ns))


def _cleared(
    alert: Alert,
    policy: Policy,
    because: Because,
    text: str,
    now: Moment,
    age_seconds: float | None,
) -> Alert:
    return msgspec.structs.replace(
        alert,
        transition="cleared",
        value=age_seconds,
        cleared_because=because,
        decided_at=instant(now.ns),
        text=text,
        silenced_by=policy.silence_of(alert, now.ns),
    )
