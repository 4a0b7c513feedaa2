"""`api.alert`: what is open, what happened, the rules, and silences."""

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import TypeVar

import msgspec

from handlers.alerting.configuration import AlertConfiguration
from handlers.alerting.open_alerts import OpenAlerts
from handlers.foreign import ForeignMessages
from handlers.queries.time_range import time_range
from handlers.settings import QuerySettings
from handlers.utilization.levels import RANK
from schemas.alert_api import (
    AlertFilter,
    AlertHistoryReply,
    AlertHistoryRequest,
    AlertsReply,
    RuleName,
    RulesReply,
    RuleState,
    SetRule,
    SilenceId,
    SilenceRequest,
    SilencesReply,
    SilenceState,
)
from schemas.alerts import Silence
from schemas.analysis import Alert
from schemas.api import Nothing
from schemas.message import UNDECODABLE
from schemas.protocols import (
    Call,
    Clock,
    Endpoint,
    PublishError,
    RequestError,
    Subscriber,
    json_endpoint,
)
from schemas.units import instant, to_ns

RequestT = TypeVar("RequestT", bound=msgspec.Struct)

DAY_SECONDS = 86_400.0


class AlertEndpoints:
    """Answers from the rules in force and the alerts in the stream, the same in every process."""

    def __init__(
        self,
        configuration: AlertConfiguration,
        open_alerts: OpenAlerts,
        subscriber: Subscriber,
        settings: QuerySettings,
        clock: Clock,
        foreign: ForeignMessages,
    ) -> None:
        self._configuration = configuration
        self._open = open_alerts
        self._subscriber = subscriber
        self._settings = settings
        self._clock = clock
        self._foreign = foreign
        self._decode = msgspec.json.Decoder(Alert).decode

    def endpoints(self) -> list[Endpoint]:
        """All of them."""
        return [
            _endpoint("list", AlertFilter, self.list_open, AlertsReply),
            _endpoint("history", AlertHistoryRequest, self.history, AlertHistoryReply),
            _endpoint("rules", Nothing, self.rules, RulesReply),
            _endpoint("set_rule", SetRule, self.set_rule, RulesReply),
            _endpoint("delete_rule", RuleName, self.delete_rule, RulesReply),
            _endpoint("reset_rule", RuleName, self.reset_rule, RulesReply),
            _endpoint("silences", Nothing, self.silences, SilencesReply),
            _endpoint("silence", SilenceRequest, self.silence, SilenceState),
            _endpoint("unsilence", SilenceId, self.unsilence, SilencesReply),
        ]

    def list_open(self, request: AlertFilter, _call: Call) -> AlertsReply:
        """The open alerts; whether one is silenced is decided now, not when it was recorded."""
        now_ns = self._clock()
        found = sorted(_matching(self._open.all(), request), key=_urgency, reverse=True)
        policy = self._configuration.book.current
        judged = [_silenced_by(alert, policy.silence_of(alert, now_ns)) for alert in found]
        rows = [alert for alert in judged if alert.silenced_by is None]
        silenced = [alert for alert in judged if alert.silenced_by is not None]
        return AlertsReply(
            answered_at=instant(now_ns),
            rows=rows[: request.limit],
            total=len(rows),
            silenced=silenced[: request.limit],
            silenced_total=len(silenced),
            text="" if judged else "no alert is open",
            by_severity=dict(Counter(alert.severity for alert in rows)),
        )

    async def history(self, request: AlertHistoryRequest, _call: Call) -> AlertHistoryReply:
        """The transitions of a time range."""
        start_ns, end_ns = time_range(
            request.start,
            request.end,
            request.seconds,
            self._clock(),
            default_seconds=DAY_SECONDS,
        )
        rows = list(_matching(await self._read(start_ns, end_ns), request))
        return AlertHistoryReply(
            start=instant(start_ns),
            end=instant(end_ns),
            rows=rows[-request.limit :],
            matched=len(rows),
        )

    async def _read(self, start_ns: int, end_ns: int) -> Sequence[Alert]:
        found: list[Alert] = []
        size_bytes = 0
        deliveries = self._subscriber.read(
            "ALERTS", subject=Alert.pattern(), start_ns=start_ns, end_ns=end_ns
        )
        try:
            async with (
                asyncio.timeout(self._settings.history_timeout_seconds),
                contextlib.aclosing(deliveries),
            ):
                async for delivery in deliveries:
                    size_bytes += len(delivery.payload)
                    if size_bytes > self._settings.history_scan_bytes:
                        raise RequestError(
                            413,
                            "this range holds more alerts than "
                            f"{self._settings.history_scan_bytes} bytes: ask for less time",
                        )
                    try:
                        found.append(self._decode(delivery.payload))
                    except UNDECODABLE as error:
                        self._foreign.pass_over(delivery, error)
        except (TimeoutError, PublishError) as error:
            raise RequestError(503, "the alerts could not be read now") from error
        return found

    def rules(self, _request: Nothing, _call: Call) -> RulesReply:
        """Every rule, those that are off or removed included."""
        book = self._configuration.book
        states = []
        for name, rule in sorted({**book.of_settings, **book.current.rules}.items()):
            if name not in book.current.rules:
                states.append(RuleState(rule=rule.settings, version=0, state="removed"))
                continue
            states.append(
                RuleState(
                    rule=rule.settings,
                    version=rule.version,
                    state="in_force" if rule.settings.enabled else "off",
                )
            )
        return RulesReply(rules=states, problems=dict(book.problems))

    async def set_rule(self, request: SetRule, call: Call) -> RulesReply:
        """Add or change a rule."""
        rule = await self._configuration.set_rule(request.rule, request.expected_version)
        return self._only(rule.name, call)

    async def delete_rule(self, request: RuleName, call: Call) -> RulesReply:
        """Have a rule judged no more."""
        await self._configuration.delete_rule(request.name)
        return self._only(request.name, call)

    async def reset_rule(self, request: RuleName, call: Call) -> RulesReply:
        """Go back to what the settings say of a rule."""
        await self._configuration.reset_rule(request.name)
        return self._only(request.name, call)

    def _only(self, name: str, call: Call) -> RulesReply:
        reply = self.rules(Nothing(), call)
        return RulesReply(rules=[state for state in reply.rules if state.rule.name == name])

    def silences(self, _request: Nothing, _call: Call) -> SilencesReply:
        """Every silence, those that ended within a day included."""
        now_ns = self._clock()
        silences = self._configuration.book.current.silences
        upon = self._silenced(now_ns)
        rows = [_silence_state(one, now_ns, upon[one.silence_id]) for one in silences]
        rows.sort(key=lambda row: (row.silence.ends_at, row.silence.silence_id))
        return SilencesReply(answered_at=instant(now_ns), rows=rows)

    async def silence(self, request: SilenceRequest, _call: Call) -> SilenceState:
        """Begin a silence."""
        now_ns = self._clock()
        if (request.ends_at is None) == (request.seconds is None):
            raise RequestError(400, "give either ends_at or seconds")
        starts_at = request.starts_at or instant(now_ns)
        try:
            ends_at = request.ends_at or starts_at + timedelta(seconds=request.seconds or 0.0)
        except OverflowError as error:
            raise RequestError(
                400, "starts_at: the silence would end after the year 9999"
            ) from error
        if to_ns(ends_at) <= now_ns:
            raise RequestError(400, "ends_at: the silence would be over already")
        try:
            silence = Silence(
                silence_id=secrets.token_hex(4),
                rule=request.rule,
                scope=request.scope,
                id=request.id,
                starts_at=starts_at,
                ends_at=ends_at,
                author=request.author,
                comment=request.comment,
            )
        except ValueError as error:
            raise RequestError(400, str(error)) from error
        await self._configuration.silence(silence, now_ns, future=request.future)
        return _silence_state(silence, now_ns, self._silenced(now_ns)[silence.silence_id])

    async def unsilence(self, request: SilenceId, _call: Call) -> SilencesReply:
        """Take a silence back; answers what is left."""
        await self._configuration.unsilence(request.silence_id)
        return self.silences(Nothing(), _call)

    def _silenced(self, now_ns: int) -> Counter[str | None]:
        """How many open alerts each silence is upon."""
        policy = self._configuration.book.current
        return Counter(policy.silence_of(alert, now_ns) for alert in self._open.all())


def _endpoint(
    name: str,
    request: type[RequestT],
    handle: Callable[[RequestT, Call], msgspec.Struct | Awaitable[msgspec.Struct]],
    reply: type[msgspec.Struct],
) -> Endpoint:
    return json_endpoint(f"alert_{name}", f"api.alert.{name}", request, handle, reply_type=reply)


def _silence_state(silence: Silence, now_ns: int, alerts: int) -> SilenceState:
    if now_ns >= to_ns(silence.ends_at):
        return SilenceState(silence=silence, state="expired", alerts=alerts)
    is_active = now_ns >= to_ns(silence.starts_at)
    return SilenceState(silence=silence, state="active" if is_active else "pending", alerts=alerts)


def _matching(alerts: Iterable[Alert], request: AlertFilter) -> Iterable[Alert]:
    for alert in alerts:
        if (
            RANK[alert.severity] >= RANK[request.severity]
            and request.scope in {None, alert.scope}
            and request.id in {None, alert.id}
            and request.pool in {None, alert.pool}
            and request.rule in {None, alert.rule, alert.rule.split("-", 1)[0]}
        ):
            yield alert


def _silenced_by(alert: Alert, silence_id: str | None) -> Alert:
    """As it is now; nearly always as it was recorded."""
    if alert.silenced_by == silence_id:
        return alert
    return msgspec.structs.replace(alert, silenced_by=silence_id)


def _urgency(alert: Alert) -> tuple[int, datetime, str]:
    return RANK[alert.severity], alert.raised_at, alert.alert_id
