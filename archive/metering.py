"""Publishes what the meter counted: ArchiveMetrics, by the archiver that keeps the index."""

import asyncio
import contextlib
from collections.abc import Iterator

from archive.money import price_table
from archive.settings import ArchiveSettings
from archive.vault import Vault
from schemas.archive_money import ArchiveMetrics
from schemas.protocols import Clock, Publisher, PublishError
from schemas.units import instant


class Metering:
    """Tells the use of each namespace, every `metrics_interval_seconds`."""

    def __init__(
        self,
        vault: Vault,
        publisher: Publisher,
        instance: str,
        clock: Clock,
        settings: ArchiveSettings,
    ) -> None:
        self._vault = vault
        self._publisher = publisher
        self._instance = instance
        self._clock = clock
        self._interval_seconds = settings.metrics_interval_seconds
        self._prices = price_table(settings.prices) if settings.shows_money else None

    async def run(self) -> None:
        """For ever."""
        while True:
            await self.tell()
            await asyncio.sleep(self._interval_seconds)

    async def tell(self) -> None:
        """Once, as far as the bus takes it: the next ones say as much."""
        with contextlib.suppress(PublishError):
            for message in self._messages():
                await self._publisher.publish(message)

    def _messages(self) -> Iterator[ArchiveMetrics]:
        meter = self._vault.meter
        for namespace in meter.namespaces:
            yield ArchiveMetrics(
                instance=self._instance,
                namespace=namespace,
                observed_at=instant(self._clock()),
                counted_since=instant(meter.since_ns(namespace) or 0),
                store=self._vault.store.description,
                classes=meter.uses(namespace, self._prices),
                prices=self._prices,
            )
