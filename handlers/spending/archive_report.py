"""The archive's part of a report: what it used, cost and saved."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

from handlers.queries.stream_reader import StreamReader
from handlers.spending.recorded_usage import STORED_LATER_NS
from handlers.spending.usage import total
from schemas.archive_money import (
    ArchiveSpending,
    ArchiveUsage,
    ArchiveUse,
    added,
    followed,
    holding_nothing,
)
from schemas.money import usd
from schemas.report import ArchiveFigures, ReportArchive, ReportArchiveNamespace
from schemas.spending import Usage
from schemas.units import SECOND_NS, to_ns

HOUR_SECONDS = 3600.0
NO_POOL = ""
"""In the place of a pool: all GPUs of a fleet in which none is in a pool."""
_MINUTE_NS = 60 * SECOND_NS


async def recorded_archive(
    reader: StreamReader, start_ns: int, end_ns: int
) -> dict[str, list[ArchiveUsage]]:
    """The hours of each namespace from `start_ns` on, before `end_ns`, in order, each once.

    From the rollups, and those not over yet from the last ArchiveSpending.

    Raises:
        RequestError: 413 that is too much to read, 503 the streams do not answer.
    """
    usages = await reader.between(
        "ROLLUPS", ArchiveUsage, ArchiveUsage.pattern(), start_ns, end_ns + STORED_LATER_NS
    )
    for spending in await reader.last("EVENTS", ArchiveSpending):
        usages += spending.hours
    # Of an hour told twice the first counts: the rollup is whole.
    found: defaultdict[str, dict[int, ArchiveUsage]] = defaultdict(dict)
    for usage in usages:
        hour_ns = to_ns(usage.hour_at)
        if start_ns <= hour_ns < end_ns:
            found[usage.namespace].setdefault(hour_ns, usage)
    return {name: [hours[ns] for ns in sorted(hours)] for name, hours in sorted(found.items())}


def archive_report(
    recorded: Mapping[str, Sequence[ArchiveUsage]],
    pools: Mapping[str, Sequence[Usage]],
    chosen: Mapping[str, str],
    *,
    only_pool: str | None,
    span_ns: int,
) -> ReportArchive | None:
    """What these hours come to; None: none is of whom the report is.

    Args:
        recorded: hours of the archive by namespace.
        pools: hours of GPUs by pool; of a fleet without pools those of all, by `NO_POOL`.
        chosen: pools that compute the values of a namespace, by namespace.
        only_pool: the report is of this pool alone.
        span_ns: length of the period.
    """
    namespaces = []
    last_at = max((hour.hour_at for hours in recorded.values() for hour in hours), default=None)
    minutes: dict[datetime, int] = {}
    tables = []
    for name, hours in recorded.items():
        pool = chosen.get(name)
        if pool is None:
            # Of a report of one pool the others are not known, so that one is not the only one.
            pool = pool_of(name, pools) if only_pool is None else name
        if only_pool not in (None, pool):
            continue
        namespaces.append(
            _namespace(name, hours, last_at, pool, gpu_hour_usd(pools.get(pool or NO_POOL, ())))
        )
        tables += [hour.prices for hour in hours if hour.prices is not None]
        for hour in hours:
            minutes[hour.hour_at] = max(hour.minutes, minutes.get(hour.hour_at, 0))
    if not namespaces:
        return None
    return ReportArchive(
        namespaces=namespaces,
        total=_together([one.total for one in namespaces]),
        prices=[table for at, table in enumerate(tables) if table not in tables[:at]],
        measured_ratio=min(1.0, sum(minutes.values()) * _MINUTE_NS / span_ns),
    )


def pool_of(namespace: str, pools: Mapping[str, object]) -> str | None:
    """The pool that computes what a namespace keeps, where nobody said: by name, or the only one.

    None: there is none, or there are several, and none has its name.
    """
    if namespace in pools:
        return namespace
    return (next(iter(pools)) or None) if len(pools) == 1 else None


def gpu_hour_usd(hours: Sequence[Usage]) -> float | None:
    """The mean cost of a GPU-hour of a pool, energy as in its cost; None: a GPU has no price.

    8 GPUs at 4 USD and 2 at 2 USD for an hour: 36 by 10 = 3.60.
    """
    if any(hour.unpriced_gpu_hours for hour in hours):
        return None
    states = [s for hour in hours for s in (hour.active, hour.idle_held, hour.idle, hour.unknown)]
    cost = total([state.usd for state in states])
    gpu_hours = sum(state.gpu_hours for state in states)
    return cost / gpu_hours if cost is not None and gpu_hours else None


def archive_notes(found: ReportArchive) -> list[str]:
    """What its numbers do not say by themselves."""
    said = [
        f"the archive's prices are those of {table.source}, {table.as_of}: "
        f"${table.gib_month_usd:g} a GiB and 730 hours; for 1,000 requests "
        f"${table.write_usd_per_1000:g} to write, ${table.list_usd_per_1000:g} to list, "
        f"${table.read_usd_per_1000:g} to read"
        for table in found.prices
    ]
    if not found.prices:
        said.append(
            "no price is known of the archive's store: archive.prices gives it some, with "
            'apply = "on"'
        )
    if found.measured_ratio < 0.99:
        said.append(
            f"the archive was heard of in {found.measured_ratio:.0%} of the period; what it held "
            "in the rest is not counted"
        )
    use = found.total.use
    if use.restored_without_cost_total:
        said.append(
            f"{use.restored_without_cost_total} of {use.restored_total} restored values did not "
            "say what computing them takes (Fleet-Cost-Seconds): what they avoided is not counted"
        )
    unpriced = [
        one.namespace
        for one in found.namespaces
        if one.total.avoided_seconds and one.total.avoided_usd is None
    ]
    if unpriced:
        said.append(
            f"no price is known of the GPUs that compute {', '.join(unpriced)}: "
            "handlers.waste.archive_pools names their pool, handlers.prices.rules its price"
        )
    priced = [
        (one, one.usd_per_gpu_hour)
        for one in found.namespaces
        if one.total.avoided_usd and one.usd_per_gpu_hour is not None
    ]
    if priced:
        at = ", ".join(
            f"{one.namespace} at {usd(price)} a GPU-hour of "
            + (f"pool {one.pool}" if one.pool else "the fleet")
            for one, price in priced
        )
        said.append(f"avoided computing is priced as seconds of one GPU: {at}")
    return said


def _namespace(
    name: str,
    hours: Sequence[ArchiveUsage],
    last_at: datetime | None,
    pool: str | None,
    hourly_usd: float | None,
) -> ReportArchiveNamespace:
    """`last_at`: the last hour of any namespace; what was not told in it is not held any more."""
    uses: dict[str, ArchiveUse] = {}
    for hour in hours:
        for ttl_class, use in hour.classes.items():
            known = uses.get(ttl_class)
            uses[ttl_class] = use if known is None else followed(known, use)
    held = {name for hour in hours if hour.hour_at == last_at for name in hour.classes}
    for ttl_class in uses.keys() - held:
        uses[ttl_class] = holding_nothing(uses[ttl_class])
    classes = {ttl_class: _figures(use, hourly_usd) for ttl_class, use in sorted(uses.items())}
    return ReportArchiveNamespace(
        namespace=name,
        pool=pool,
        usd_per_gpu_hour=hourly_usd,
        classes=classes,
        total=_figures(added(uses.values()), hourly_usd),
    )


def _figures(use: ArchiveUse, hourly_usd: float | None) -> ArchiveFigures:
    """What a use avoided: 7,200 s at 4 USD a GPU-hour are 8 USD; that less its cost is the net."""
    seconds = use.avoided_seconds
    avoided_usd = None
    if seconds is not None and (hourly_usd is not None or not seconds):
        avoided_usd = seconds / HOUR_SECONDS * (hourly_usd or 0.0)
    return _with_net(use, seconds, avoided_usd)


def _together(parts: Sequence[ArchiveFigures]) -> ArchiveFigures:
    """Of several namespaces; what is not known of one of them is not known of all."""
    use = added([part.use for part in parts])
    usd = [part.avoided_usd for part in parts]
    is_known = all(value is not None for value in usd)
    return _with_net(use, use.avoided_seconds, total(usd) if is_known else None)


def _with_net(use: ArchiveUse, seconds: float | None, avoided_usd: float | None) -> ArchiveFigures:
    is_known = avoided_usd is not None and use.cost is not None
    return ArchiveFigures(
        use=use,
        avoided_seconds=seconds,
        avoided_usd=avoided_usd,
        net_usd=(avoided_usd or 0.0) - (use.cost.total_usd if use.cost else 0.0)
        if is_known
        else None,
    )
