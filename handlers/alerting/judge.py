"""Decides when an alert is raised, updated and cleared: holds, margins, silences. Pure."""

import math
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

import msgspec

from handlers.alerting.book import AlertBook, Policy
from handlers.alerting.rule import Rule
from handlers.alerting.subject import Subject
from handlers.alerting.wording import alert_text, ended_text
from handlers.utilization.levels import RANK
from handlers.window import ExpiringDict
from schemas.analysis import Alert, Scope, Severity
from schemas.protocols import Emit, Moment
from schemas.units import SECOND_NS, instant, token

GONE_NS = 600 * SECOND_NS
"""A part that is silent for so long while its node is not is gone."""

Because: TypeAlias = Literal["recovered", "gone", "no_news", "rule_changed", "rule_removed"]
PartKey: TypeAlias = tuple[str, str | None]
"""Rule and part."""


class Track(msgspec.Struct, kw_only=True):
    """What is remembered of a rule on a part while it is bad, or was."""

    id: str
    rule: str
    part: str | None
    source: str
    heard_ns: int
    rule_version: int
    since: dict[Severity, int] = {}
    """Since when each severity's condition has held."""
    calm_ns: int | None = None
    """Since when the alert's severity is over."""
    alert: Alert | None = None


class Judge:
    """The open alerts of one slot, and what may become one.

    A severity is reached when its condition held for `for_seconds` without a sample to the
    contrary and without a gap of `gap_ns`; it ends when the value was past its threshold by
    `clear_margin` for `clear_for_seconds`. A value that is not measured does neither. Everything
    is in the snapshot, so holds may be longer than the window.
    """

    def __init__(self, book: AlertBook, scope: Scope, gap_ns: int, forget_ns: int) -> None:
        self._scope = scope
        self._gap_ns = gap_ns
        self._tracks: ExpiringDict[tuple[str, str, str | None], Track] = ExpiringDict(
            forget_ns, on_forgotten=self._forget
        )
        self._warm: dict[str, dict[PartKey, Track]] = {}
        self._forgotten: list[Track] = []
        self._silence_edge_ns: float = math.inf
        # What a restored track was judged by may not be in force any more.
        self._is_due = False
        self.policy: Policy = book.first
        self.groups = self.policy.groups[scope]
        """Of the rules in force, by the type of message that they read."""

    def warm(self, id_: str) -> Mapping[PartKey, Track] | None:
        """What is remembered of a node, pool or the fleet; None, nearly always, is nothing."""
        return self._warm.get(id_)

    def see(
        self,
        rule: Rule,
        subject: Subject,
        value: float,
        thresholds: Mapping[Severity, float],
        now: Moment,
    ) -> Emit | None:
        """What this value decides, if anything."""
        track = self._warm.get(subject.id, {}).get((rule.name, subject.part))
        if track is None:
            if not rule.holds(value, next(iter(thresholds.values()))):
                return None
            track = Track(
                id=subject.id,
                rule=rule.name,
                part=subject.part,
                source=subject.source,
                heard_ns=now.ns,
                rule_version=rule.version,
            )
            self._warm.setdefault(subject.id, {})[rule.name, subject.part] = track
        if now.ns - track.heard_ns >= self._gap_ns:
            track.since, track.calm_ns = {}, None
        track.heard_ns = now.ns
        self._tracks.put((track.id, track.rule, track.part), track, now.ns)
        severity = self._decide(rule, track, value, thresholds, now.ns)
        before = track.alert
        if before is None and severity is None:
            if not track.since:
                self._drop(track)
            return None
        if before is not None and severity == before.severity:
            return None
        if before is None:
            after = _new(self._scope, rule, subject, now)
        else:
            after = msgspec.structs.replace(
                before, transition="cleared" if severity is None else "updated"
            )
        after = _valued(rule, after, severity, value, thresholds, now)
        if severity is None:
            self._drop(track)
        after = msgspec.structs.replace(after, text=alert_text(rule, after, subject.detail))
        return self._publish(track, after, now)

    def _decide(
        self,
        rule: Rule,
        track: Track,
        value: float,
        thresholds: Mapping[Severity, float],
        ns: int,
    ) -> Severity | None:
        """The severity from now on."""
        holding = [s for s, threshold in thresholds.items() if rule.holds(value, threshold)]
        track.since = {severity: track.since.get(severity, ns) for severity in holding}
        reached: Severity | None = None
        for severity, since_ns in track.since.items():  # the mildest first
            if ns - since_ns >= rule.for_ns:
                reached = severity
        if track.alert is None:
            return reached
        present = track.alert.severity
        kept: Severity | None = None
        for severity, threshold in thresholds.items():
            has_left = not rule.holds(value, rule.clear_threshold(threshold))
            if RANK[severity] <= RANK[present] and not has_left:
                kept = severity
        wanted = max(reached, kept, key=lambda severity: RANK[severity])
        if RANK[wanted] >= RANK[present]:
            track.calm_ns = None
            return wanted
        if track.calm_ns is None:
            track.calm_ns = ns
        if ns - track.calm_ns < rule.clear_for_ns:
            return present
        track.calm_ns = None
        return wanted

    def end(self, track: Track, because: Because, now: Moment) -> Emit | None:
        """Forget a part; its open alert is cleared."""
        self._drop(track)
        return self._cleared(track, because, now)

    def _cleared(self, track: Track, because: Because, now: Moment) -> Emit | None:
        if track.alert is None:
            return None
        after = msgspec.structs.replace(
            track.alert,
            transition="cleared",
            value=None,
            cleared_because=because,
            decided_at=instant(now.ns),
        )
        rule = self.policy.rules.get(track.rule)
        text = ended_text(after) if rule is None else alert_text(rule, after, None)
        return self._publish(track, msgspec.structs.replace(after, text=text), now)

    def end_absent(
        self, id_: str, source: str, rules: frozenset[str], present: set[str | None], now: Moment
    ) -> list[Emit]:
        """End what these rules had on elements of a list that are not in it any more."""
        absent = [
            track
            for track in self._warm.get(id_, {}).values()
            if track.source == source and track.rule in rules and track.part not in present
        ]
        return _some(self.end(track, "gone", now) for track in _ordered(absent))

    def end_silent(self, id_: str, now: Moment) -> list[Emit]:
        """End what has been silent for long, although its node or the stream was heard just now."""
        silent = [t for t in self._warm.get(id_, {}).values() if now.ns - t.heard_ns >= GONE_NS]
        return _some(self.end(track, "gone", now) for track in _ordered(silent))

    def end_all_silent(self, now: Moment) -> list[Emit]:
        """The same for whatever is remembered."""
        return [emit for id_ in sorted(self._warm) for emit in self.end_silent(id_, now)]

    def follow(self, now: Moment) -> list[Emit]:
        """Go on to the policy of `now`; end what was judged by rules that are no more."""
        if now.ns < self.policy.ends_ns and not self._is_due:
            return []
        while self.policy.next is not None and now.ns >= self.policy.ends_ns:
            self.policy = self.policy.next
        self.groups = self.policy.groups[self._scope]
        self._is_due = False
        emits: list[Emit] = []
        for track in _ordered(track for warm in self._warm.values() for track in warm.values()):
            rule = self.policy.rules.get(track.rule)
            if rule is None or not rule.settings.enabled:
                emits += _some([self.end(track, "rule_removed", now)])
            elif rule.version != track.rule_version:
                emits += _some([self.end(track, "rule_changed", now)])
        return emits + self._silences_changed(now)

    def tick(self, now: Moment) -> list[Emit]:
        """What comes of time alone: policies, silences that end, alerts without news."""
        emits = self.follow(now)
        if now.ns >= self._silence_edge_ns:
            emits += self._silences_changed(now)
        self._tracks.expire(now.ns)
        forgotten, self._forgotten = self._forgotten, []
        return emits + _some(self._cleared(track, "no_news", now) for track in _ordered(forgotten))

    def _silences_changed(self, now: Moment) -> list[Emit]:
        self._silence_edge_ns = self.policy.next_silence_ns(now.ns)
        emits = []
        for track in _ordered(track for warm in self._warm.values() for track in warm.values()):
            alert = track.alert
            if alert is None or self.policy.silence_of(alert, now.ns) == alert.silenced_by:
                continue
            after = msgspec.structs.replace(alert, transition="updated", decided_at=instant(now.ns))
            emits.append(self._publish(track, after, now))
        return emits

    def _publish(self, track: Track, after: Alert, now: Moment) -> Emit:
        after = msgspec.structs.replace(after, silenced_by=self.policy.silence_of(after, now.ns))
        track.alert = after
        return emit(after, now)

    def _drop(self, track: Track) -> None:
        self._tracks.discard((track.id, track.rule, track.part))
        self._cool(track)

    def _forget(self, key: tuple[str, str, str | None]) -> None:
        track = self._warm[key[0]][key[1:]]
        self._cool(track)
        if track.alert is not None:
            self._forgotten.append(track)

    def _cool(self, track: Track) -> None:
        warm = self._warm.get(track.id, {})
        warm.pop((track.rule, track.part), None)
        if not warm:
            self._warm.pop(track.id, None)

    def snapshot(self) -> bytes:
        """Everything."""
        return msgspec.json.encode([track for _, _, track in self._tracks.touched()])

    def restore(self, snapshot: bytes) -> None:
        """Take over everything."""
        restored = msgspec.json.decode(snapshot, type=list[Track])
        for key, _ in self._tracks.items():
            self._tracks.discard(key)
        self._warm.clear()
        for track in restored:
            self._tracks.put((track.id, track.rule, track.part), track, track.heard_ns)
            self._warm.setdefault(track.id, {})[track.rule, track.part] = track
        self._is_due = True


def emit(alert: Alert, now: Moment) -> Emit:
    """The id of an update carries its instant: the same severity can come more than once."""
    message_id = f"{alert.alert_id}.{alert.transition}.{alert.severity}"
    return Emit(alert, f"{message_id}.{now.ns}" if alert.transition == "updated" else message_id)


def _ordered(tracks: Iterable[Track]) -> list[Track]:
    """By name: whoever takes over remembers them in another order."""
    return sorted(tracks, key=lambda track: (track.id, track.rule, track.part or ""))


def _some(emits: Iterable[Emit | None]) -> list[Emit]:
    return [one for one in emits if one is not None]


def _new(scope: Scope, rule: Rule, subject: Subject, now: Moment) -> Alert:
    """An alert of this instant; `_valued` fills in what the value says."""
    name = rule.name if subject.part is None else f"{rule.name}-{token(subject.part)}"
    return Alert(
        transition="raised",
        severity="info",
        scope=scope,
        id=subject.id,
        rule=name,
        part=subject.part,
        alert_id=f"{scope}.{subject.id}.{name}.{now.ns}",
        text="",
        metric=rule.settings.metric,
        value=None,
        threshold=0.0,
        clear_threshold=0.0,
        for_seconds=rule.settings.for_seconds,
        raised_at=instant(now.ns),
        decided_at=instant(now.ns),
        pool=subject.pool,
        simulated=subject.simulated,
        rule_version=rule.version,
    )


def _valued(
    rule: Rule,
    alert: Alert,
    severity: Severity | None,
    value: float,
    thresholds: Mapping[Severity, float],
    now: Moment,
) -> Alert:
    """`alert` with this value; a cleared one keeps the severity it had."""
    severity = severity or alert.severity
    return msgspec.structs.replace(
        alert,
        severity=severity,
        value=value,
        # An alert taken over may have a severity that its rule no longer has.
        threshold=thresholds.get(severity, alert.threshold),
        # An alert clears where its lowest severity ends.
        clear_threshold=rule.clear_threshold(next(iter(thresholds.values()))),
        cleared_because="recovered" if alert.transition == "cleared" else None,
        decided_at=instant(now.ns),
    )
