"""Runs every benchmark of this folder, one after the other."""

import asyncio

from benchmarks import bench_advice, bench_ready


def main() -> None:
    """Run all."""
    bench_ready.main()
    asyncio.run(bench_advice.measure(pools=200, runs=5))


if __name__ == "__main__":
    main()
