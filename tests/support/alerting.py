"""Alert handlers fed with a few samples."""

from collections.abc import Iterable, Sequence

from handlers.alerting.book import AlertBook
from handlers.alerting.defaults import DEFAULT_RULES
from handlers.alerting.handler import AlertsHandler
from handlers.settings import AlertSettings
from schemas.alerts import AlertRule
from schemas.analysis import Alert, Scope
from schemas.message import Message
from schemas.protocols import Emit
from tests.support.samples import at


def alerts_handler(
    *rules: AlertRule, scope: Scope = "node", book: AlertBook | None = None
) -> AlertsHandler:
    """A handler with these rules, else the default ones, else those of `book`."""
    return AlertsHandler(AlertSettings(), book or AlertBook(rules or DEFAULT_RULES), scope)


def alerts_of(emits: Iterable[Emit]) -> list[Alert]:
    alerts = [emit.message for emit in emits if isinstance(emit.message, Alert)]
    for alert in alerts:
        alert.subject()  # every token is one
    return alerts


def played(
    *steps: tuple[float, Message | None], handler: AlertsHandler | None = None
) -> list[Alert]:
    """What comes of the samples at these seconds; None is a tick."""
    handler = handler or alerts_handler()
    alerts = []
    for second, message in steps:
        now = at(second)
        alerts += alerts_of(handler.tick(now) if message is None else handler.handle(message, now))
    return alerts


def transitions(alerts: Sequence[Alert]) -> list[tuple[str, str]]:
    return [(alert.transition, alert.severity) for alert in alerts]
