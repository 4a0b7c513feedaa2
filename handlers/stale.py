"""The alert `node_stale`: a node that no longer publishes host metrics."""

from collections.abc import Sequence

import msgspec

from handlers.settings import AlertSettings
from handlers.window import ExpiringDict
from schemas.analysis import Alert, Scope
from schemas.message import Message
from schemas.metrics import HostMetrics
from schemas.protocols import Emit, Moment
from schemas.units import SECOND_NS, instant


class _Seen(msgspec.Struct, frozen=True):
    """The last host metrics of one node: when, and when their absence becomes staleness."""

    ns: int
    limit_ns: int
    pool: str | None
    simulated: bool


class _State(msgspec.Struct, frozen=True):
    seen: dict[str, _Seen]
    open: dict[str, Alert]


class StaleNodesHandler:
    """Raised once on the first tick after the limit, cleared by the node's next host metrics.

    The limit is `stale_seconds`, or `stale_intervals` of the node's own interval when that is
    longer; a node whose agent stopped on purpose (`leaving`) has none. `raised_at` is the instant
    at which the limit was passed, whatever tick saw it, so every replica and every rebuild gives
    the alert the same id. Nodes seen and open alerts outlive the window in the snapshot: a node
    that dies while no handler runs is still found.
    """

    name = "stale_nodes"
    scope: Scope = "node"
    consumes: tuple[type[Message], ...] = (HostMetrics,)

    def __init__(self, settings: AlertSettings) -> None:
        self._settings = settings
        self._forget_ns = int(settings.forget_seconds * SECOND_NS)
        self.window_ns = int(settings.stale_seconds * SECOND_NS)
        self._seen: ExpiringDict[str, _Seen] = ExpiringDict(self._forget_ns)
        self._open: dict[str, Alert] = {}  # only of nodes in _seen

    def handle(self, message: HostMetrics, now: Moment) -> Sequence[Emit]:
        """The node is alive: clear its alert."""
        before = self._seen.get(message.node, now.ns)
        limit_seconds = max(
            self._settings.stale_seconds,
            self._settings.stale_intervals * message.interval_seconds,
        )
        # By then the node is forgotten anyway, and nanoseconds of more may not fit the snapshot.
        forget_seconds = self._settings.forget_seconds
        limit_seconds = forget_seconds if message.leaving else min(limit_seconds, forget_seconds)
        self._seen.put(
            message.node,
            _Seen(now.ns, int(limit_seconds * SECOND_NS), message.pool, message.simulated),
            now.ns,
        )
        alert = self._open.pop(message.node, None)
        if alert is None or before is None:
            return ()
        age_seconds = (now.ns - before.ns) / SECOND_NS
        cleared = msgspec.structs.replace(
            alert,
            transition="cleared",
            value=age_seconds,
            decided_at=instant(now.ns),
            text=f"{message.node} is back after {age_seconds:.0f} s without host metrics",
        )
        return (_emit(cleared),)

    def tick(self, now: Moment) -> Sequence[Emit]:
        """Raise what became stale."""
        emits = []
        seen = dict(self._seen.items(now.ns))
        for node in self._open.keys() - seen.keys():
            del self._open[node]
        for node, last in sorted(seen.items()):
            if node not in self._open and now.ns - last.ns >= last.limit_ns:
                self._open[node] = _raised(node, last, now.ns)
                emits.append(_emit(self._open[node]))
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


def _raised(node: str, last: _Seen, now_ns: int) -> Alert:
    raised_ns = last.ns + last.limit_ns
    limit_seconds = last.limit_ns / SECOND_NS
    return Alert(
        transition="raised",
        severity="critical",
        scope="node",
        id=node,
        rule="node_stale",
        alert_id=f"node.{node}.node_stale.{raised_ns}",
        text=f"{node} has published no host metrics for {limit_seconds:g} s",
        metric="host.age_seconds",
        value=(now_ns - last.ns) / SECOND_NS,
        threshold=limit_seconds,
        clear_threshold=limit_seconds,
        for_seconds=0.0,
        raised_at=instant(raised_ns),
        decided_at=instant(now_ns),
        pool=last.pool,
        simulated=last.simulated,
    )


def _emit(alert: Alert) -> Emit:
    return Emit(alert, f"{alert.alert_id}.{alert.transition}.{alert.severity}")
