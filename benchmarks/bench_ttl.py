"""How many returns of evicted blocks an archive serves, by what it may store.

`python -m benchmarks.bench_ttl --data DIR`: replays `mooncake` and `agent_sessions` of DIR in
their own time through a cache namespace (LRU, 5 % of the distinct blocks, hits and new blocks
tail first) and the archive's index. All evictions, TTL decisions, scores and drops are the
shipped ones; only bus and store are left out. A block that returns leaves the archive. Storage is
block-seconds until the end of the trace, by those of an archive that keeps everything; each row
shows the share of the returns that it serves with at most 10, 20, 30 and 50 % of that.

The TTL rows take the base (and adaptive its alpha) that serves most at each share, in hindsight,
as nobody can; between two bases they are interpolated. Size-aware is not shown: all blocks are of
one size. The budget row knows only its bytes. The oracle keeps what returns, the soonest first.
"""

import argparse
import asyncio
import dataclasses
import gc
import gzip
import itertools
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from agent.views.charts import Axis, Series, line_chart
from archive.index import NamespaceIndex
from archive.index_entry import IndexEntry
from cache.entry import Entry
from cache.namespace import Namespace
from cache.outbox import Item
from cache.settings import MIB, TEN_YEARS_SECONDS, CacheSettings
from schemas.units import SECOND_NS

TRACES = {
    "agents": ("agent_sessions/swe_web_dev.jsonl.gz", [1.6**step for step in range(12)]),
    "chat": ("mooncake/conversation_dev.jsonl.gz", [60 * 1.6**step for step in range(8)]),
}
"""File, and the bases to try, in seconds."""
RAM_SHARE = 0.05
STORAGE_SHARES = (0.1, 0.2, 0.3, 0.5)
NEVER = {"heuristic": "static", "base_seconds": float(TEN_YEARS_SECONDS)}
ROWS: dict[str, list[dict[str, Any]]] = {
    "static": [{"heuristic": "static"}],
    "adaptive": [
        {"heuristic": "adaptive", "alpha": alpha, "min_seconds": 0.0} for alpha in (1.0, 4.0)
    ],
    "reuse": [{"heuristic": "reuse", "min_seconds": 0.0, "min_score": 0.1}],
}
BUDGET_STEPS = (1.0, 1.15)
"""A budget is full only after a while: those tried, by the mean bytes of the share."""
START_NS = 1_700_000_000 * SECOND_NS


class Request(msgspec.Struct):
    """One line of a trace: when (milliseconds) and which chain of blocks, root first."""

    timestamp: float
    hash_ids: list[int]


@dataclasses.dataclass(slots=True)
class Result:
    """What one replay came to; `gaps` are the seconds from eviction to return, if served."""

    returns: int = 0
    block_seconds: float = 0.0
    gaps: list[float] = dataclasses.field(default_factory=list)

    @property
    def served_ratio(self) -> float:
        """Of the returns, those that the archive had."""
        return len(self.gaps) / max(1, self.returns)


class Replay:
    """A namespace and the index of its archive, in the time of a trace."""

    def __init__(
        self, requests: list[Request], ttl: dict[str, Any], budget_blocks: int = 0
    ) -> None:
        blocks = len({block for request in requests for block in request.hash_ids})
        ram_blocks = max(1, round(RAM_SHARE * blocks))
        ram_mb = max(1, ram_blocks * 1024 // MIB)
        self._value = bytes(ram_mb * MIB // ram_blocks - 20)
        self._now_ns = START_NS
        self._requests = requests
        self._index = NamespaceIndex(budget_blocks)
        self._archived: dict[str, Item] = {}
        self._seen: set[str] = set()
        self.result = Result()
        self._namespace = Namespace(
            "default",
            msgspec.convert(
                {"max_memory_mb": ram_mb, "eviction_policy": "lru", "ttl": ttl}, CacheSettings
            ),
            epoch_ms=1,
            generation=1,
            message_ids=map(str, itertools.count()),
            clock=lambda: self._now_ns,
        )
        self._namespace.archived.begin_sync((), ())
        self._namespace.archived.finish_sync(())
        self._namespace.archived.caught_up = True

    async def run(self) -> Result:
        """Play all requests."""
        for request in self._requests:
            self._now_ns = START_NS + int(request.timestamp * 1e6)
            keys = [f"{block:010d}" for block in request.hash_ids]
            for depth in range(len(keys) - 1, -1, -1):
                parent = keys[depth - 1] if depth else None
                self._use(keys[depth], parent, extended=depth < len(keys) - 1)
                if self._namespace.outbox.pending:
                    await self._take_evictions()
        for key in list(self._archived):
            self._leave(key)
        return self.result

    def _use(self, key: str, parent: str | None, *, extended: bool) -> None:
        namespace = self._namespace
        is_known = key in self._seen
        self._seen.add(key)
        if namespace.find(key) is not None:
            return
        self.result.returns += is_known
        lives = self._index.find(key, self._now_ns) is not None
        item = self._leave(key)
        if item is None or item.entry is None or not lives:
            namespace.put(Entry(key=key, value=self._value, parent=parent, extended=extended))
            return
        self.result.gaps.append((self._now_ns - item.evicted_at_ns) / SECOND_NS)
        entry = msgspec.structs.replace(
            item.entry,
            place=None,
            access_count=item.entry.access_count + 1,
            last_accessed_ns=self._now_ns,
            earlier_uses=0,
        )
        namespace.restores.finish(key, namespace.restores.begin(key), entry)

    async def _take_evictions(self) -> None:
        outbox = self._namespace.outbox
        while outbox.pending:
            item = await outbox.take()
            outbox.acknowledge(item)
            self._namespace.archived.confirm(item.key, item.version, tombstone=item.entry is None)
            if item.entry is not None:
                outbox.confirm(item.key, item.version)
                self._store(item, item.entry)

    def _store(self, item: Item, entry: Entry) -> None:
        self._leave(item.key)
        self._archived[item.key] = item
        self._index.put(
            IndexEntry(
                namespace="default",
                key=item.key,
                generation=1,
                version=item.version,
                tombstone=False,
                segment="s",
                first=0,
                size_bytes=1,
                object_bytes=1,
                stored_ns=self._now_ns,
                expires_ns=item.expires_at_ns,
                hash=b"",
                tags=(),
                tag=None,
                follows=False,
                cost_seconds=None,
                score=item.score or 1.0,
                used_ns=entry.last_accessed_ns,
            )
        )
        while (least := self._index.excess(self._now_ns)) is not None:
            self._leave(least.key)

    def _leave(self, key: str) -> Item | None:
        entry = self._index.newest(key)
        if entry is None:
            return None
        until_ns = self._now_ns if entry.expires_ns is None else entry.expires_ns
        self.result.block_seconds += (min(until_ns, self._now_ns) - entry.stored_ns) / SECOND_NS
        self._index.remove(entry)
        return self._archived.pop(key)


def load(path: Path) -> list[Request]:
    """The requests of a trace, in order."""
    with gzip.open(path) as lines:
        return [msgspec.json.decode(line, type=Request) for line in lines]


def replay(path: Path, ttl: dict[str, Any], budget_blocks: int = 0) -> Result:
    """One replay, in a process of its own."""
    gc.disable()  # it holds millions of objects without a cycle
    result = asyncio.run(Replay(load(path), ttl, budget_blocks).run())
    gc.enable()
    return result


def served_at(results: list[Result], block_seconds: float) -> float:
    """The ratio served with that much storage, between the two nearest results."""
    points = sorted((result.block_seconds, result.served_ratio) for result in results)
    for (less, low), (more, high) in itertools.pairwise([(0.0, 0.0), *points]):
        if less <= block_seconds < more:
            return low + (high - low) * (block_seconds - less) / (more - less)
    return points[-1][1]


def oracle(gaps: list[float], block_seconds: float) -> float:
    """The ratio served by who keeps only what returns, the soonest first."""
    spent = itertools.accumulate(sorted(gaps))
    return sum(seconds <= block_seconds for seconds in spent) / len(gaps)


def draw(trace: str, rows: dict[str, list[float]], folder: Path) -> None:
    """A trace as a chart of the returns served by the storage spent."""
    folder.mkdir(parents=True, exist_ok=True)
    chart = line_chart(
        f"Returns served from the archive, {trace}",
        [
            Series(row, list(zip(STORAGE_SHARES, ratios, strict=True)))
            for row, ratios in rows.items()
        ],
        Axis("of the storage that keeps all", text="{:.0%}".format, ticks=STORAGE_SHARES),
        Axis("served", text="{:.0%}".format),
    )
    (folder / f"ttl_{trace}.svg").write_text(chart + "\n")


def main() -> None:
    """Print one table for each trace."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--data", type=Path, required=True, help="folder of the traces")
    arguments.add_argument("--charts", type=Path, help="folder for a chart of each trace")
    chosen = arguments.parse_args()
    data, rows = chosen.data, dict[str, list[float]]()

    def show(row: str, ratios: Iterable[float]) -> None:
        rows[row] = list(ratios)
        print(f"  {row:12}", *(f"{100 * ratio:5.1f}" for ratio in rows[row]), flush=True)

    for trace, (name, bases) in TRACES.items():
        rows.clear()
        path = data / name
        keep_all = replay(path, NEVER)
        stored = [share * keep_all.block_seconds for share in STORAGE_SHARES]
        print(f"{trace}: {keep_all.returns} returns; % served with 10 / 20 / 30 / 50 % of storage")
        seconds = load(path)[-1].timestamp / 1000
        with ProcessPoolExecutor() as pool:
            by_ttl = {
                row: [
                    [pool.submit(replay, path, {**ttl, "base_seconds": base}) for base in bases]
                    for ttl in ttls
                ]
                for row, ttls in ROWS.items()
            }
            budgets = [round(step * part / seconds) for part in stored for step in BUDGET_STEPS]
            by_budget = [pool.submit(replay, path, NEVER, budget) for budget in budgets]
            for row, choices in by_ttl.items():
                curves = [[future.result() for future in futures] for futures in choices]
                show(row, (max(served_at(curve, part) for curve in curves) for part in stored))
            curve = [future.result() for future in by_budget]
            show("budget", (served_at(curve, part) for part in stored))
        show("oracle", (oracle(keep_all.gaps, part) for part in stored))
        if chosen.charts:
            draw(trace, rows, chosen.charts)


if __name__ == "__main__":
    main()
