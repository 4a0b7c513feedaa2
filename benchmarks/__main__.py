"""Runs every benchmark of this folder, one after the other: `make bench`, `make bench DATA=DIR`."""

import argparse
import subprocess
import sys
from pathlib import Path

ALONE = (
    "bench_ready",
    "bench_advice",
    "bench_queries",
    "bench_handlers",
    "bench_load",
    "bench_takeover",
    "bench_memory",
    "bench_codec",
    "bench_cache",
    "bench_large",
    "bench_same_host",
    "bench_agent",
    "bench_archive",
)
WITH_DATA = ("bench_eviction", "bench_ttl", "bench_forecast", "bench_scaling")
"""Need the public traces, which are not part of the repository."""


def main() -> None:
    """Run all, each with its own defaults; exit code 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with the public traces")
    data = parser.parse_args().data
    commands = [[name] for name in ALONE]
    if data is not None:
        commands += [[name, "--data", str(data)] for name in WITH_DATA]
    failed = []
    for name, *options in commands:
        print(f"\n# {name}\n", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", *options]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if data is None:
        print("\nleft out, as they need --data, the folder with the traces:", ", ".join(WITH_DATA))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
