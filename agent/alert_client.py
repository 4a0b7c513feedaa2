"""The part of `ResourceAgent` that is about alerts: what is open, the rules, silences."""

from datetime import datetime
from typing import Any, TypeVar

import msgspec

from agent.connected import Connected
from schemas.alert_api import (
    AlertFilter,
    AlertHistoryReply,
    AlertHistoryRequest,
    AlertsReply,
    RuleName,
    RulesReply,
    SetRule,
    SilenceId,
    SilenceRequest,
    SilencesReply,
    SilenceState,
)
from schemas.analysis import Scope, Severity
from schemas.units import token_or_none

T = TypeVar("T")

ALERT_TIMEOUT_SECONDS = 8.0
"""A change waits until the server has told it back; less than a command has."""


class AlertCalls(Connected):
    """Calls of `api.alert`; each raises `schemas.protocols.RequestError` when it is refused."""

    async def alerts(
        self,
        *,
        severity: Severity | None = None,
        scope: Scope | None = None,
        id: str | None = None,
        pool: str | None = None,
        rule: str | None = None,
        limit: int = 1000,
    ) -> AlertsReply:
        """What is open now, silenced ones apart; `severity`: that one and worse."""
        asked = AlertFilter(
            severity=severity,
            scope=scope,
            id=token_or_none(id),
            pool=token_or_none(pool),
            rule=rule,
            limit=limit,
        )
        return await self._alert("list", asked, AlertsReply)

    async def alert_history(
        self,
        *,
        seconds: float | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        severity: Severity | None = None,
        scope: Scope | None = None,
        id: str | None = None,
        pool: str | None = None,
        rule: str | None = None,
        limit: int = 1000,
    ) -> AlertHistoryReply:
        """What was raised, updated and cleared; without a range the last day."""
        asked = AlertHistoryRequest(
            seconds=seconds,
            start=start,
            end=end,
            severity=severity,
            scope=scope,
            id=token_or_none(id),
            pool=token_or_none(pool),
            rule=rule,
            limit=limit,
        )
        return await self._alert("history", asked, AlertHistoryReply)

    async def alert_rules(self) -> RulesReply:
        """All rules, and what is wrong in `fleet-config`."""
        return await self._alert("rules", None, RulesReply)

    async def set_alert_rule(
        self,
        /,
        name: str,
        *,
        expected_version: int | None = None,
        **fields: Any,  # noqa: ANN401 - of many types
    ) -> RulesReply:
        """Add a rule, or change the given fields of one; they are those of AlertRule."""
        asked = SetRule(rule={"name": name, **fields}, expected_version=expected_version)
        return await self._alert("set_rule", asked, RulesReply)

    async def delete_alert_rule(self, name: str) -> RulesReply:
        """Have a rule judged no more; its open alerts are cleared."""
        return await self._alert("delete_rule", RuleName(name=name), RulesReply)

    async def reset_alert_rule(self, name: str) -> RulesReply:
        """Go back to the settings' rule of that name."""
        return await self._alert("reset_rule", RuleName(name=name), RulesReply)

    async def silences(self) -> SilencesReply:
        """All silences, those that ended within a day included."""
        return await self._alert("silences", None, SilencesReply)

    async def silence(
        self,
        *,
        author: str,
        rule: str = "*",
        scope: Scope | None = None,
        id: str = "*",
        seconds: float | None = None,
        starts_at: datetime | None = None,
        ends_at: datetime | None = None,
        comment: str = "",
        future: bool = False,
    ) -> SilenceState:
        """Begin a silence, for `seconds` or until `ends_at`; `rule` and `id` are patterns.

        A `rule` that matches none is refused (404), but with `future`.
        """
        asked = SilenceRequest(
            rule=rule,
            scope=scope,
            id=id,
            starts_at=starts_at,
            ends_at=ends_at,
            seconds=seconds,
            author=author,
            comment=comment,
            future=future,
        )
        return await self._alert("silence", asked, SilenceState)

    async def unsilence(self, silence_id: str) -> SilencesReply:
        """Take a silence back."""
        return await self._alert("unsilence", SilenceId(silence_id=silence_id), SilencesReply)

    async def _alert(self, name: str, body: msgspec.Struct | None, reply: type[T]) -> T:
        return await self._ask(
            f"api.alert.{name}", body, reply, timeout_seconds=ALERT_TIMEOUT_SECONDS
        )
