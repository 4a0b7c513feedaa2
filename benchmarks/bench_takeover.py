"""How long until another handlers process does the work of one that was killed, and what is lost.

`python -m benchmarks.bench_takeover`: a private nats-server, and two `resource-agent run handlers`
with the heartbeats they have by themselves. Pools become overloaded, one process is killed with
-9 at once, and the pools go on to tell their load every 0.1 s. Time from the kill until all slots
are the other's, and until every pool has its advice, a second of overload included; then, how many
pools have none or more than one. Five runs, each on a server of its own.
"""

import argparse
import asyncio
import os
import signal
import statistics
import time
from collections import Counter

import msgspec

from agent.bus import Bus
from benchmarks.bench_advice import overloaded
from benchmarks.installation import private_bus, service
from schemas.scaling import Recommendation

SETTINGS = {"RESOURCE_AGENT_HANDLERS__SCALING__UP_HOLD_SECONDS": "1"}
TELL_SECONDS = 0.1
LONGER_SECONDS = 5.0
LIMIT_SECONDS = 120.0


async def slots_of(bus: Bus, name: str) -> int:
    """How many slots a process has."""
    leases = await bus.bucket("lease").items()
    owner = f"handlers.{name}@".encode()
    return sum(
        key.startswith("handlers.slot.") and found.startswith(owner)
        for key, (found, _) in leases.items()
    )


async def advised(bus: Bus) -> Counter[str]:
    """How often each pool was advised."""
    read = bus.read("RECOMMENDATIONS", subject=Recommendation.pattern())
    return Counter(
        [msgspec.json.decode(one.payload, type=Recommendation).pool async for one in read]
    )


async def tell(bus: Bus, pools: list[str]) -> None:
    """Tell the load of all pools, until cancelled."""
    while True:
        for pool in pools:
            await bus.publish(overloaded(pool))
        await asyncio.sleep(TELL_SECONDS)


async def one_run(pools: list[str]) -> tuple[float, float, int]:
    """Seconds to the slots, seconds to the last advice, pools without exactly one."""
    async with (
        private_bus() as bus,
        service(bus, "handlers", "killed", **SETTINGS) as pid,
        service(bus, "handlers", "other", **SETTINGS),
        asyncio.timeout(LIMIT_SECONDS),
    ):
        while not 0 < await slots_of(bus, "killed") == await slots_of(bus, "other"):
            await asyncio.sleep(TELL_SECONDS)
        slots = 2 * await slots_of(bus, "other")
        telling = asyncio.create_task(tell(bus, pools))
        await asyncio.sleep(TELL_SECONDS)
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        while await slots_of(bus, "other") < slots:
            await asyncio.sleep(TELL_SECONDS)
        taken = time.monotonic() - killed
        while len(await advised(bus)) < len(pools):
            await asyncio.sleep(TELL_SECONDS)
        last = time.monotonic() - killed
        await asyncio.sleep(LONGER_SECONDS)
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
        found = await advised(bus)
    return taken, last, sum(found[pool] != 1 for pool in pools)


def main() -> None:
    """Run with the command line's numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", type=int, default=100)
    parser.add_argument("--runs", type=int, default=5)
    asked = parser.parse_args()
    pools = [f"pool-{number}" for number in range(asked.pools)]
    runs = [asyncio.run(one_run(pools)) for _ in range(asked.runs)]
    for name, seconds in (
        ("all slots taken over", [run[0] for run in runs]),
        ("every pool advised", [run[1] for run in runs]),
    ):
        spread = f"{min(seconds):.1f} to {max(seconds):.1f}"
        print(f"{name} {statistics.median(seconds):.1f} s after the kill   (runs: {spread})")
    print(f"pools without exactly one advice: {sum(run[2] for run in runs)}")


if __name__ == "__main__":
    main()
