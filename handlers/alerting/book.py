"""Which rules and silences are in force when: the settings' with what `fleet-config` changes."""

import functools
import math
from collections.abc import Mapping, Sequence

import msgspec
import structlog

from handlers.alerting.rule import Group, Rule, grouped
from handlers.alerting.silences import Silences
from schemas.alerts import AlertRule, Silence
from schemas.analysis import Alert, Scope
from schemas.message import UNDECODABLE, Message

log = structlog.get_logger()

RULE_KEY = "handlers.alert_rule."
SILENCE_KEY = "handlers.silence."
POLICIES_KEPT = 64
"""More than change within the windows that a rebuild reads anew."""


REMOVED = b"null"
"""The record of a rule of the settings that is not wanted; without any record it is there."""

_decode_rule = msgspec.json.Decoder(AlertRule | None).decode
_decode_silence = msgspec.json.Decoder(Silence).decode


class Policy:
    """The rules and silences in force from `ns` on, until `ends_ns`, when `next` takes over."""

    def __init__(self, ns: int, rules: Mapping[str, Rule], silences: Sequence[Silence]) -> None:
        self.ns = ns
        self.ends_ns: float = math.inf
        self.next: Policy | None = None
        self.rules = rules
        self.silences = tuple(silences)

    @functools.cached_property
    def groups(self) -> Mapping[Scope, Mapping[type[Message], Sequence[Group]]]:
        """The rules by scope and by the type of message that they read."""
        rules = self.rules.values()
        scopes: tuple[Scope, ...] = ("node", "pool", "fleet")
        return {scope: grouped(rules, scope) for scope in scopes}

    @functools.cached_property
    def _upon(self) -> Silences:
        return Silences(self.silences)

    def silence_of(self, alert: Alert, ns: int) -> str | None:
        """The silence upon an alert at `ns`: of several the one that ends last."""
        return self._upon.upon(alert, ns) if self.silences else None

    def next_silence_ns(self, ns: int) -> float:
        """When a silence begins or ends next, after `ns`."""
        return self._upon.next_edge_ns(ns) if self.silences else math.inf


class AlertBook:
    """The policies of an installation, in the order of their instants.

    Each change is heard with the instant at which the server stored it: the clock of the metrics
    stream. So a rebuild that reads metrics of a minute ago judges them by the rules of then. A
    record that is refused changes nothing, and `problems` says why, by key.

    Raises:
        ValueError: a rule of the settings is wrong.
    """

    def __init__(self, rules: Sequence[AlertRule]) -> None:
        self.of_settings = {rule.name: Rule(rule) for rule in rules}
        if len(self.of_settings) != len(rules):
            raise ValueError("two alert rules have the same name")
        self.first = self.current = Policy(0, self.of_settings, ())
        self._kept = 1
        self.revision = 0
        self.problems: dict[str, str] = {}

    def is_of_settings(self, name: str) -> bool:
        """Whether the settings have a rule of this name."""
        return name in self.of_settings

    def at(self, ns: int) -> Policy:
        """The policy in force at `ns`, or the oldest one that is still known."""
        policy = self.first
        while policy.next is not None and ns >= policy.ends_ns:
            policy = policy.next
        return policy

    def heard(self, key: str, record: bytes | None, revision: int, ns: int) -> None:
        """A record of `fleet-config` as of now; None: it was removed."""
        if revision <= self.revision:
            return
        self.revision = revision
        try:
            if key.startswith(RULE_KEY):
                self._heard_rule(key.removeprefix(RULE_KEY), record, revision, ns)
            elif key.startswith(SILENCE_KEY):
                self._heard_silence(key.removeprefix(SILENCE_KEY), record, ns)
        except (ValueError, *UNDECODABLE) as error:
            self.problems[key] = str(error)
            log.error("alert_configuration_refused", key=key, error=str(error)[:300])
        else:
            self.problems.pop(key, None)

    def _heard_rule(self, name: str, record: bytes | None, revision: int, ns: int) -> None:
        rules = dict(self.current.rules)
        if record is None:
            rules.pop(name, None)
            if name in self.of_settings:
                rules[name] = Rule(self.of_settings[name].settings, since_ns=ns)
        else:
            given = _decode_rule(record)
            if given is None:
                rules.pop(name, None)
            elif given.name != name:
                raise ValueError(f"the record of rule {name} is of rule {given.name}")
            elif name not in rules or rules[name].settings != given:
                rules[name] = Rule(given, revision, ns)
        if rules != self.current.rules:
            self._begin(Policy(ns, rules, self.current.silences))

    def _heard_silence(self, silence_id: str, record: bytes | None, ns: int) -> None:
        silences = {silence.silence_id: silence for silence in self.current.silences}
        silences.pop(silence_id, None)
        if record is not None:
            given = _decode_silence(record)
            if given.silence_id != silence_id:
                raise ValueError(f"the record of silence {silence_id} is of {given.silence_id}")
            silences[silence_id] = given
        self._begin(Policy(ns, self.current.rules, tuple(silences.values())))

    def _begin(self, policy: Policy) -> None:
        self.current.next, self.current.ends_ns = policy, policy.ns
        self.current = policy
        self._kept += 1
        if self._kept > POLICIES_KEPT and self.first.next is not None:
            self.first = self.first.next
            self._kept -= 1
