"""How long `resource-agent up` takes to be ready: `python -m benchmarks.bench_ready`.

Whole processes, several starts on one state folder (the first one creates all streams), from exec
to the ready file.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def one_start(folder: Path) -> float:
    """Seconds until the ready file is there."""
    ready = folder / "ready.json"
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "agent", "up", "--no-live", "--state-dir", str(folder / "state"),
         "--ready-file", str(ready)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={k: v for k, v in os.environ.items() if k != "NATS_URL"},
    )  # fmt: skip
    while not ready.exists():
        if process.poll() is not None:
            raise RuntimeError(f"up ended with {process.returncode}")
        time.sleep(0.005)
    seconds = time.perf_counter() - started
    process.send_signal(signal.SIGINT)
    process.wait(15)
    return seconds


def measure(runs: int) -> None:
    """Print the first start and the median of the others."""
    with tempfile.TemporaryDirectory() as folder:
        first, *later = [one_start(Path(folder)) for _ in range(runs + 1)]
    print(
        f"up ready: first start {first:.2f} s, median of {runs} later starts "
        f"{statistics.median(later):.2f} s (slowest {max(later):.2f} s)"
    )


def main() -> None:
    """Run with the command line's numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=6, help="starts after the first one")
    measure(parser.parse_args().runs)


if __name__ == "__main__":
    main()
