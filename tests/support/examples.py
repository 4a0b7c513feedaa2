"""The programs in examples/, run as they are."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.program import ROOT, environment


@contextlib.contextmanager
def example(
    name: str, nats_url: str, folder: Path, *arguments: str
) -> Iterator[subprocess.Popen[bytes]]:
    """`examples/<name>.py`, working in `folder`, ended in the end."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / f"{name}.py"), *arguments],
        cwd=folder,
        env={**environment(), "NATS_URL": nats_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
