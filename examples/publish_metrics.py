"""Publish the load of one inference engine once a second, with nothing but nats-py.

    export NATS_URL=...   # of a user who may publish; `resource-agent up` writes it to up.json
    python examples/publish_metrics.py --pool chat --engine chat-0 --waiting 40

After `handlers.scaling.up_hold_seconds` (30) of a long queue, advice comes on
`fleet.v1.recommendation.scale_up.chat`. Fields and units: docs/subjects.md; leave out what
your engine does not measure.
"""

import argparse
import asyncio
import json
import os
import sys
from datetime import UTC, datetime

import nats


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="publish EngineMetrics once a second")
    parser.add_argument("--url", default=os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))
    parser.add_argument("--pool", default="chat", help="engines that share one load")
    parser.add_argument("--node", default=os.uname().nodename.replace(".", "-"))
    parser.add_argument("--engine", default="chat-0", help="one replica of the pool")
    parser.add_argument("--model", default="llama-3-8b")
    parser.add_argument("--running", type=int, default=60)
    parser.add_argument("--running-max", type=int, default=64)
    parser.add_argument("--waiting", type=int, default=40)
    parser.add_argument("--kv-cache-ratio", type=float, default=0.9)
    return parser.parse_args()


async def say(error: Exception) -> None:
    print(f"nats: {error}", file=sys.stderr)


async def main() -> None:
    asked = arguments()
    client = await nats.connect(asked.url, error_cb=say, max_reconnect_attempts=-1)
    subject = f"fleet.v1.metrics.engine.{asked.node}.{asked.engine}"
    print(f"publishing on {subject}; stop with Ctrl-C", flush=True)
    while True:
        metrics = {
            "node": asked.node,
            "engine": asked.engine,
            "pool": asked.pool,
            "model": asked.model,
            "observed_at": datetime.now(UTC).isoformat(),
            "requests_running": asked.running,
            "requests_running_max": asked.running_max,
            "requests_waiting": asked.waiting,
            "kv_cache_usage_ratio": asked.kv_cache_ratio,
        }
        if client.is_connected:  # a late metric would look like a new one
            await client.publish(subject, json.dumps(metrics).encode())
        await asyncio.sleep(1)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        print("stopped")
