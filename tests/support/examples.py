"""The programs in examples/, run as they are, and advice for the orchestrator."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from schemas.scaling import Evidence, Recommendation
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


def advice(number: int, **fields: Any) -> Recommendation:
    """Scale pool `chat` from `number` to `number + 1`."""
    now = datetime.now(UTC)
    name = f"chat.scale_up.{number}"
    values: dict[str, Any] = {
        "action": "scale_up",
        "pool": "chat",
        "recommendation_id": name,
        "idempotency_key": name,
        "decided_at": now,
        "expires_at": now + timedelta(minutes=10),
        "replicas_from": number,
        "replicas_to": number + 1,
        "reason": "requests_waiting",
        "text": "more",
        "evidence": [Evidence(signal="requests_waiting", value=40.0, threshold=5.0)],
        "confidence_ratio": 1.0,
        "risk": "low",
        "effective_after_seconds": 120.0,
    }
    return Recommendation(**{**values, **fields})
