"""Runs every benchmark of this folder, one after the other: `make bench`."""

import argparse
import asyncio

from benchmarks import (
    bench_advice,
    bench_agent,
    bench_cache,
    bench_handlers,
    bench_large,
    bench_load,
    bench_queries,
    bench_ready,
)
from benchmarks.rounds import ROUNDS


def main() -> None:
    """Run all, each with its own defaults."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    bench_ready.measure(runs=6)
    asyncio.run(bench_advice.measure(pools=200, runs=5))
    asyncio.run(bench_queries.measure(requests=300, runs=5))
    bench_handlers.main()
    asyncio.run(bench_load.measure(nodes=10_000, seconds=30.0))
    asyncio.run(bench_cache.measure(ROUNDS))
    asyncio.run(bench_large.measure(ROUNDS))
    asyncio.run(bench_agent.measure(bench_agent.find_exporter(), seconds=120))


if __name__ == "__main__":
    main()
