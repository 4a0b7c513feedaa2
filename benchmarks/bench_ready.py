"""How long `resource-agent up` takes to be ready: `python -m benchmarks.bench_ready`.

Whole processes, seven starts on one state folder (the first one creates all streams), from exec
to the ready file.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STARTS = 7


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


def main() -> None:
    """Print the first start and the median of the others."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = [one_start(Path(folder)) for _ in range(STARTS)]
    print(
        f"up ready: first start {seconds[0]:.2f} s, median of {STARTS - 1} later starts "
        f"{statistics.median(seconds[1:]):.2f} s (slowest {max(seconds[1:]):.2f} s)"
    )


if __name__ == "__main__":
    main()
