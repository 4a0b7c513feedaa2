"""What a replay came to, for people and programs: summary, CSV, one HTML page with charts."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from agent import human
from agent.replay.figures import ALL, OPERATIONS, CacheCounters, Latency, Sample
from agent.replay.run import Replay
from agent.views.charts import Axis, Series, line_chart
from agent.views.page import page, table

MAX_POINTS = 400


class ClassSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One class of requests, or all of them."""

    requests: int
    blocks: int
    block_hit_ratio: float | None
    request_hit_ratio: float | None
    requests_whole: int
    latency: dict[str, Latency]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A whole replay. Null: nobody said."""

    trace: str
    bad_lines: int
    elapsed_seconds: float
    requests_per_second: float
    late_seconds: float
    classes: dict[str, ClassSummary]
    cache: CacheCounters
    errors: dict[str, int]
    blocks_not_kept: int
    wrong_values: int


def summarize(replay: Replay) -> Summary:
    """Of what has been measured so far."""
    figures = replay.figures
    last = figures.samples[-1] if figures.samples else None
    elapsed = last.elapsed_seconds if last else replay.elapsed_seconds
    return Summary(
        trace=replay.trace.name,
        bad_lines=replay.trace.bad_total,
        elapsed_seconds=elapsed,
        requests_per_second=figures.classes[ALL].requests / elapsed if elapsed else 0.0,
        late_seconds=figures.late_seconds,
        classes={
            name: ClassSummary(
                requests=one.requests,
                blocks=one.blocks,
                block_hit_ratio=one.block_hit_ratio,
                request_hit_ratio=one.request_hit_ratio,
                requests_whole=one.requests_whole,
                latency={op: figures.latency(op, name) for op in OPERATIONS},
            )
            for name, one in sorted(
                figures.classes.items(), key=lambda item: (item[0] != ALL, item[0])
            )
        },
        cache=last.cache if last else CacheCounters(),
        errors=dict(figures.errors),
        blocks_not_kept=figures.not_kept,
        wrong_values=figures.wrong_values,
    )


def percent(ratio: float | None) -> str:
    """`74.2 %`, or `-` where nothing was measured."""
    return "-" if ratio is None else f"{100 * ratio:.1f} %"


def seconds(value: float | None) -> str:
    """`1.2 ms`, or `-`."""
    return "-" if value is None else human.duration(value)


def count(value: int | None) -> str:
    """`12,345`, or `-`."""
    return "-" if value is None else f"{value:,}"


HIT_COLUMNS = ("class", "requests", "blocks", "blocks hit", "requests hit", "whole chain hit")
LATENCY_COLUMNS = ("class", "operation", "count", "p50", "p95", "p99")
CACHE_COLUMNS = ("entries", "RAM used", "evictions", "archived", "lost", "restores")


def hit_rows(summary: Summary) -> list[tuple[str, ...]]:
    """One row a class."""
    return [
        (
            name,
            count(one.requests),
            count(one.blocks),
            percent(one.block_hit_ratio),
            percent(one.request_hit_ratio),
            count(one.requests_whole),
        )
        for name, one in summary.classes.items()
    ]


def latency_rows(summary: Summary) -> list[tuple[str, ...]]:
    """One row for each class and operation that happened."""
    return [
        (
            name,
            operation,
            count(found.count),
            *map(seconds, (found.p50_seconds, found.p95_seconds, found.p99_seconds)),
        )
        for name, one in summary.classes.items()
        for operation, found in one.latency.items()
        if found.count
    ]


def cache_row(cache: CacheCounters) -> tuple[str, ...]:
    """Sizes now, and growth since the replay began."""
    used = "-" if cache.used_bytes is None else human.size(cache.used_bytes)
    rest = (cache.evictions, cache.archived, cache.lost, cache.restores)
    return (count(cache.entries), used, *map(count, rest))


def write_csv(replay: Replay, path: Path) -> None:
    """One row for each class and sample; totals since the start, p95 since the row before."""
    with path.open("w", newline="") as opened:
        writer = csv.writer(opened)
        counters = CacheCounters.__struct_fields__
        writer.writerow(
            (
                *("elapsed_seconds", "class", "requests", "requests_hit", "requests_whole"),
                *("blocks", "blocks_hit", "p95_seconds", *counters),
            )
        )
        for sample in replay.figures.samples:
            for name, one in sample.classes.items():
                cache = (
                    msgspec.structs.astuple(sample.cache) if name == ALL else ("",) * len(counters)
                )
                writer.writerow(
                    (
                        f"{sample.elapsed_seconds:.3f}",
                        name,
                        *(one.requests, one.requests_hit, one.requests_whole),
                        *(one.blocks, one.blocks_hit, sample.p95_seconds.get(name), *cache),
                    )
                )


def write_html(replay: Replay, path: Path) -> None:
    """One page that needs nothing else: tables, and charts over the time of the replay."""
    summary, options = summarize(replay), replay.options
    took = human.duration(summary.elapsed_seconds)
    subtitle = (
        f"{count(summary.classes[ALL].requests)} requests in {took}, {options.clients} clients, "
        f"blocks of {human.size(options.value_bytes)}, namespace {options.namespace}"
    )
    tables = (
        table(HIT_COLUMNS, hit_rows(summary)),
        table(LATENCY_COLUMNS, latency_rows(summary)),
        table(CACHE_COLUMNS, [cache_row(summary.cache)]),
    )
    path.write_text(page(f"Replay of {summary.trace}", subtitle, tables, _charts(replay)))


def _charts(replay: Replay) -> Iterator[str]:
    samples = _thinned(replay.figures.samples)
    names = sorted(replay.figures.classes, key=lambda name: (name != ALL, name))
    elapsed = Axis("elapsed", text=human.duration)

    def by_class(value: Callable[[Sample, str], float | None]) -> list[Series]:
        return [Series(n, [(s.elapsed_seconds, value(s, n)) for s in samples]) for n in names]

    def of_cache(**named: str) -> list[Series]:
        return [
            Series(label, [(s.elapsed_seconds, getattr(s.cache, field)) for s in samples])
            for field, label in named.items()
        ]

    def hit(sample: Sample, name: str) -> float | None:
        one = sample.classes.get(name)
        return one.block_hit_ratio if one else None

    yield line_chart("Blocks hit, since the start", by_class(hit), elapsed, Axis("", text=percent))
    yield line_chart(
        "A request, p95 of each half second",
        by_class(lambda sample, name: sample.p95_seconds.get(name)),
        elapsed,
        Axis("", text=human.duration),
    )
    events = of_cache(evictions="evicted", archived="archived", restores="restored", lost="lost")
    yield line_chart("Evictions, archive and restores", events, elapsed, Axis("", text=_whole))
    used = of_cache(used_bytes="RAM used")
    yield line_chart("RAM", used, elapsed, Axis("", text=human.size))


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _thinned(samples: list[Sample]) -> list[Sample]:
    step = -(-len(samples) // MAX_POINTS) or 1
    return samples[::step]
