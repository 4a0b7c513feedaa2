"""Prefix hits of every eviction policy on public traces of prefix blocks, beside Belady's optimum.

`python -m benchmarks.bench_eviction --data DIR [--json]`: DIR holds `mooncake` and
`agent_sessions`, as in the README of this folder; or `--trace FILE`, JSON lines with `timestamp`
(milliseconds) and `hash_ids` (root first). Each request is one `match_prefix` and one `set_many`
of what was missing, at the trace's own time. All blocks have the same size; the cache holds a
share of the distinct blocks of the trace and starts empty.

The prefix-hit ratio is the leading blocks found by all blocks asked for. The cost is CPU time by
block asked for. `optimum` knows the future: it drops the block whose next use is furthest, never
admits one that would be dropped next, and of equals drops the deepest.
"""

import argparse
import gzip
import heapq
import json
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.views.charts import Axis, Series, line_chart
from cache.memory import MB, InMemoryKVCacheManager
from cache.policies import POLICIES

SHARES = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5)
TRACES = {
    "mooncake": "mooncake/conversation_dev.jsonl.gz",
    "agent_sessions": "agent_sessions/swe_web_dev.jsonl.gz",
}
OPTIMUM = "optimum"
_KEY_BYTES = 12
_BLOCK_BYTES = 4096


class Request(msgspec.Struct):
    """The chain of one request, and when it came, in milliseconds since the trace began."""

    timestamp: float
    hash_ids: list[int]


class Result(msgspec.Struct):
    """One policy on one trace with one size of cache."""

    trace: str
    policy: str
    share: float
    blocks: int
    prefix_hit_ratio: float
    cost_seconds: float | None


def read_trace(path: Path) -> list[Request]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return [msgspec.json.decode(line, type=Request) for line in file]


def replay(requests: Sequence[Request], policy: str, blocks: int) -> tuple[int, float]:
    """Leading blocks found, and CPU seconds, with room for `blocks` blocks."""
    max_memory_mb = math.ceil(blocks * _BLOCK_BYTES / MB)
    value = bytes(max_memory_mb * MB // blocks - 2 * _KEY_BYTES)  # its parent's, too
    now_ns = 0
    manager = InMemoryKVCacheManager(max_memory_mb, policy, clock=lambda: now_ns)
    chains = [[f"{number:0{_KEY_BYTES}d}" for number in request.hash_ids] for request in requests]
    found = 0
    started = time.process_time()
    for request, keys in zip(requests, chains, strict=True):
        now_ns = 1_000_000_000 + int(request.timestamp * 1e6)
        matched = manager.match_prefix(keys)
        found += matched
        if matched < len(keys):
            manager.set_many(
                [(key, value) for key in keys[matched:]], keys[matched - 1] if matched else None
            )
    return found, time.process_time() - started


def optimum(requests: Sequence[Request], blocks: int) -> int:
    """Leading blocks found by Belady's rule with bypass, ties to the shallower block."""
    following: dict[int, float] = {}
    next_uses: list[list[float]] = []
    for number in range(len(requests) - 1, -1, -1):
        chain = requests[number].hash_ids
        next_uses.append([following.get(block, math.inf) for block in chain])
        following.update(dict.fromkeys(chain, number))
    next_uses.reverse()
    held: dict[int, tuple[float, int]] = {}
    furthest: list[tuple[float, int, int]] = []
    found = 0
    for request, uses in zip(requests, next_uses, strict=True):
        chain = request.hash_ids
        found += next((n for n, block in enumerate(chain) if block not in held), len(chain))
        for depth, (block, use) in enumerate(zip(chain, uses, strict=True)):
            if block not in held and use == math.inf:
                continue
            held[block] = (use, depth)
            heapq.heappush(furthest, (-use, -depth, block))
            while len(held) > blocks:
                minus_use, minus_depth, worst = heapq.heappop(furthest)
                if held.get(worst) == (-minus_use, -minus_depth):
                    del held[worst]
    return found


def measure(name: str, requests: Sequence[Request], policies: Sequence[str]) -> list[Result]:
    distinct = len({block for request in requests for block in request.hash_ids})
    asked = sum(len(request.hash_ids) for request in requests)
    results = []
    for share in SHARES:
        blocks = max(1, round(share * distinct))
        for policy in policies:
            if policy == OPTIMUM:
                found, cost = optimum(requests, blocks), None
            else:
                found, seconds = replay(requests, policy, blocks)
                cost = seconds / asked
            results.append(Result(name, policy, share, blocks, found / asked, cost))
    return results


def print_table(results: Sequence[Result]) -> None:
    """A trace as a Markdown table: hit ratios in percent, the cost as the mean of all sizes."""
    shares = sorted({result.share for result in results})
    print(f"\n**{results[0].trace}**, prefix hits in %, by share of the distinct blocks\n")
    print("| policy |", " | ".join(f"{share:.1%}" for share in shares), "| cost of a block |")
    print("|---|" + "---|" * (len(shares) + 1))
    for policy in dict.fromkeys(result.policy for result in results):
        own = [result for result in results if result.policy == policy]
        cells = " | ".join(f"{100 * result.prefix_hit_ratio:.2f}" for result in own)
        costs = [result.cost_seconds for result in own if result.cost_seconds is not None]
        cost = f"{1e6 * sum(costs) / len(costs):.2f} µs" if costs else ""
        print(f"| {policy} | {cells} | {cost} |")


def draw(results: Sequence[Result], folder: Path) -> None:
    """A trace as a chart of prefix hits by how much the cache holds, a line for each policy."""
    folder.mkdir(parents=True, exist_ok=True)
    series = [
        Series(policy, [(r.share, r.prefix_hit_ratio) for r in results if r.policy == policy])
        for policy in dict.fromkeys(result.policy for result in results)
    ]
    chart = line_chart(
        f"Prefix hits, {results[0].trace}",
        series,
        Axis("of the distinct blocks held", logarithmic=True, text="{:.1%}".format, ticks=SHARES),
        Axis("hits", text="{:.0%}".format),
    )
    name = re.sub(r"\W+", "_", results[0].trace)
    (folder / f"eviction_{name}.svg").write_text(chart + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with mooncake and agent_sessions")
    parser.add_argument("--trace", type=Path, action="append", default=[], help="a trace's file")
    parser.add_argument("--policies", default=",".join([*POLICIES, OPTIMUM]))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--charts", type=Path, help="folder for a chart of each trace")
    arguments = parser.parse_args()
    paths = {path.name: path for path in arguments.trace}
    if arguments.data:
        paths |= {name: arguments.data / path for name, path in TRACES.items()}
    if not paths:
        parser.error("one of --data and --trace is needed: traces are not part of the repository")
    for name, path in paths.items():
        results = measure(name, read_trace(path), arguments.policies.split(","))
        if arguments.json:
            for result in results:
                print(json.dumps(msgspec.to_builtins(result)))
        else:
            print_table(results)
        if arguments.charts:
            draw(results, arguments.charts)


if __name__ == "__main__":
    main()
