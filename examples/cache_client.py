"""Keep the answers of a language model in the cache: put, get, delete.

    python examples/cache_client.py            # with `resource-agent up` running

A value that RAM has no more room for goes to the archive; `get` brings it back from there.
"""

import argparse
import asyncio
import sys
import time

from agent.bus import BusError
from agent.client import CacheClient
from schemas.protocols import RequestError

PROMPT = "What is the capital of France?"


async def main() -> None:
    parser = argparse.ArgumentParser(description="put, get and delete one cached answer")
    parser.add_argument("--url", help="else NATS_URL, or the running `resource-agent up`")
    parser.add_argument("--namespace", default="default")
    asked = parser.parse_args()

    async with await CacheClient.connect(asked.url) as client:
        answers = client.of(asked.namespace)
        version = await answers.put(
            PROMPT,
            b"Paris.",
            ttl_seconds=3600,  # in RAM and archive; without it the archive decides
            cost_seconds=1.8,  # what it took to compute: dear answers are kept longer
            request_class="geography",
            tags=["demo"],
        )
        print(f"put     version {version}")

        started = time.perf_counter()
        value = await answers.get(PROMPT)
        print(f"get     {value!r} in {(time.perf_counter() - started) * 1000:.1f} ms")

        reply = await answers.delete(PROMPT)
        print(f"delete  existed: {reply.existed}")
        print(f"get     {await answers.get(PROMPT)!r}")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except (BusError, RequestError) as error:
        sys.exit(f"error: {error}")
