"""The handlers service: metrics in, analysis, alerts and scaling advice out."""

from handlers.alerting.book import AlertBook
from handlers.alerting.handler import AlertsHandler
from handlers.alerting.stale import StaleNodesHandler, stale_rule
from handlers.cache_tuning.handler import TuneCacheHandler
from handlers.decisions.book import DecisionBook
from handlers.forecasting.handler import ForecastHandler
from handlers.rightsizing.handler import GpuAdviceHandler
from handlers.rollup import RollupHandler
from handlers.scaling.gpu_facts import GpuFacts
from handlers.scaling.handler import ScalingHandler
from handlers.settings import HandlersSettings
from handlers.slots import TICK_NS
from handlers.spending.archive_use import ArchiveUseHandler
from handlers.spending.handler import WasteHandler
from handlers.utilization.handler import UtilizationHandler
from schemas.protocols import Handler
from schemas.units import SECOND_NS

__all__ = ["alert_book", "default_handlers"]


def alert_book(settings: HandlersSettings) -> AlertBook:
    """The alert rules of the settings.

    Raises:
        ValueError: one of them is wrong.
    """
    return AlertBook((*settings.alerts.rules, stale_rule(settings.alerts)))


def default_handlers(
    settings: HandlersSettings,
    book: AlertBook | None = None,
    decisions: DecisionBook | None = None,
) -> tuple[Handler, ...]:
    """A fresh set of every handler, for one slot.

    Without a book of alerts the settings' rules alone; without one of decisions none was made.
    """
    book = alert_book(settings) if book is None else book
    forecast = ForecastHandler(settings.forecast)
    counts_gpus = settings.scaling.gpu_busy_target_ratio is not None
    pools = UtilizationHandler(settings.utilization, "pool", follows_busy=counts_gpus)
    waste = WasteHandler(settings, "pool")
    window_ns = int(settings.utilization.window_seconds * SECOND_NS) + TICK_NS
    gpus = GpuFacts(pools.busy, waste.priced, window_ns)
    return (
        UtilizationHandler(settings.utilization, "node"),
        pools,  # before scaling, which asks it how busy GPUs are
        UtilizationHandler(settings.utilization, "fleet"),
        RollupHandler(settings.rollup, "node"),
        RollupHandler(settings.rollup, "pool"),
        RollupHandler(settings.rollup, "fleet"),
        AlertsHandler(settings.alerts, book, "node"),
        AlertsHandler(settings.alerts, book, "pool"),
        AlertsHandler(settings.alerts, book, "fleet"),
        StaleNodesHandler(settings.alerts, book),
        forecast,  # before scaling, which asks it
        ScalingHandler(settings.scaling, forecast.expected, decisions, gpus),
        WasteHandler(settings, "node"),
        waste,
        WasteHandler(settings, "fleet"),
        ArchiveUseHandler(),
        GpuAdviceHandler(settings),
        TuneCacheHandler(settings.tune_cache),
    )
