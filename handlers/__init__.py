"""The handlers service: metrics in, analysis, alerts and scaling advice out."""

from handlers.alerts import AlertsHandler
from handlers.forecast import ForecastHandler
from handlers.rollup import RollupHandler
from handlers.scaling import ScalingHandler
from handlers.settings import HandlersSettings
from handlers.stale import StaleNodesHandler
from handlers.utilization import UtilizationHandler
from handlers.waste import WasteHandler
from schemas.protocols import Handler

__all__ = ["default_handlers"]


def default_handlers(settings: HandlersSettings) -> tuple[Handler, ...]:
    """A fresh set of every handler, for one slot."""
    return (
        UtilizationHandler(settings.utilization, "node"),
        UtilizationHandler(settings.utilization, "pool"),
        UtilizationHandler(settings.utilization, "fleet"),
        RollupHandler(settings.rollup, "node"),
        RollupHandler(settings.rollup, "pool"),
        AlertsHandler(settings.alerts),
        StaleNodesHandler(settings.alerts),
        ScalingHandler(settings.scaling),
        ForecastHandler(settings.forecast),
        WasteHandler(settings, "node"),
        WasteHandler(settings, "pool"),
        WasteHandler(settings, "fleet"),
    )
