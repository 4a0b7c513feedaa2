"""From two readings of a counter to what happened in between."""

from typing import Any, TypeAlias

from schemas.host import DiskIoMetrics, NetworkMetrics

_MILLISECONDS = 1000
_BITS_PER_MEGABIT = 1e6

# One of psutil's named tuples: their fields differ by platform, so they are looked up by name.
Counters: TypeAlias = Any


def per_second(now: float, before: float | None, elapsed_seconds: float) -> float | None:
    """Growth per second; None without a previous value, or when the counter was reset."""
    if before is None or elapsed_seconds <= 0 or now < before:
        return None
    return (now - before) / elapsed_seconds


def busy_ratio(now: Counters, before: Counters) -> float | None:
    """Share of CPU time that was neither idle nor waiting for I/O, between two `cpu_times`.

    Single fields may run backwards a little (iowait does: proc(5)); those count as no growth. When
    the whole sum went backwards the counters were reset: None.
    """
    if now is None or before is None or sum(now) < sum(before):
        return None
    busy = idle = 0.0
    for field in now._fields:
        growth = max(0.0, getattr(now, field) - getattr(before, field))
        if field in ("idle", "iowait"):
            idle += growth
        elif not field.startswith("guest"):  # the kernel counts guests within user and nice too
            busy += growth
    return busy / (busy + idle) if busy + idle > 0 else None


def core_ratios(now: list[Counters], before: list[Counters]) -> list[float]:
    """One ratio per core; empty when not every core can be told (first sample, hot plug)."""
    if len(now) != len(before):
        return []
    ratios = [busy_ratio(core, earlier) for core, earlier in zip(now, before, strict=True)]
    known = [ratio for ratio in ratios if ratio is not None]
    return known if len(known) == len(ratios) else []


def disk_metrics(
    name: str, now: Counters, before: Counters, elapsed_seconds: float
) -> DiskIoMetrics:
    """One block device; `before` is its previous reading, None when there is none."""

    def rate(field: str) -> float | None:
        return per_second(getattr(now, field), getattr(before, field, None), elapsed_seconds)

    has_busy_time = hasattr(now, "busy_time")  # Linux and FreeBSD only
    busy_milliseconds_per_second = rate("busy_time") if has_busy_time else None
    return DiskIoMetrics(
        device=name,
        read_bytes_total=now.read_bytes,
        write_bytes_total=now.write_bytes,
        reads_total=now.read_count,
        writes_total=now.write_count,
        busy_seconds_total=now.busy_time / _MILLISECONDS if has_busy_time else None,
        read_bytes_per_second=rate("read_bytes"),
        write_bytes_per_second=rate("write_bytes"),
        reads_per_second=rate("read_count"),
        writes_per_second=rate("write_count"),
        # The kernel counts whole ticks, so a busy disk can seem to exceed the interval.
        busy_ratio=(
            None
            if busy_milliseconds_per_second is None
            else min(1.0, busy_milliseconds_per_second / _MILLISECONDS)
        ),
    )


def network_metrics(
    name: str, now: Counters, before: Counters, elapsed_seconds: float, link: Counters
) -> NetworkMetrics:
    """One interface; `before` is its previous reading, `link` its `snicstats`, each or None."""

    def rate(field: str) -> float | None:
        return per_second(getattr(now, field), getattr(before, field, None), elapsed_seconds)

    return NetworkMetrics(
        interface=name,
        received_bytes_total=now.bytes_recv,
        sent_bytes_total=now.bytes_sent,
        received_packets_total=now.packets_recv,
        sent_packets_total=now.packets_sent,
        receive_errors_total=now.errin,
        send_errors_total=now.errout,
        receive_drops_total=now.dropin,
        send_drops_total=now.dropout,
        received_bytes_per_second=rate("bytes_recv"),
        sent_bytes_per_second=rate("bytes_sent"),
        received_packets_per_second=rate("packets_recv"),
        sent_packets_per_second=rate("packets_sent"),
        is_up=getattr(link, "isup", None),
        # psutil says 0 where the speed is not known.
        speed_bits_per_second=getattr(link, "speed", 0) * _BITS_PER_MEGABIT or None,
    )
