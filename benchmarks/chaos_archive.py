"""Kills cache, archivers, nats-server and S3 at random: is anything lost, or back that is gone?

`python -m benchmarks.chaos_archive --cycles 50 --seed 1`: one server, one cache with little RAM and
two archivers, each a process of its own. In each cycle clients put, overwrite, delete and clear
while one to three of them are killed with -9 and started again; then, with nothing written, every
guarantee is checked:

- every eviction that the stream acknowledged is readable bit for bit, or superseded, or expired;
  what no archiver can read is in FLEET_DEAD, once
- nothing that was deleted, overwritten or cleared is read again, from the cache or the archive
- no object is damaged or cut short, no entry is listed twice, and what the archive counts is what
  it lists

At the end the index bucket is emptied: the objects alone must give the same entries. Exit code 1
where something did not hold; what, is told with the history of the key. The seed repeats the plan
of writes and kills, not their timing.
"""

import argparse
import asyncio
import contextlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from agent import log
from agent.blocking import BlockingThread
from agent.bus import Bus, connect, ensure_streams
from archive.folder import FolderStore
from archive.s3 import S3Store
from archive.settings import ArchiveSettings, S3Settings
from archive.store import ObjectStore
from benchmarks.chaos_check import Check, Counts, patiently, until
from benchmarks.chaos_ledger import Ledger
from benchmarks.chaos_load import Acknowledged, Load
from benchmarks.chaos_parts import Parts
from benchmarks.s3 import KINDS, s3_server

VICTIMS = ("cache", "archive-1", "archive-2", "server", "s3")
KILL_WITHIN_SECONDS = 5.0
DOWN_SECONDS = {"server": 1.0, "s3": 5.0}
"""At most; the others 3 s."""
SETTLE_SECONDS = 1.5
START_SECONDS = 60.0
COLUMNS = {name: max(6, len(name)) for name in Counts.__struct_fields__}
"""How wide each is shown."""


class Cycle(msgspec.Struct, kw_only=True):
    """What one cycle did, and what was found after it."""

    number: int
    killed: list[str]
    writes: int
    seconds: float
    counts: Counts
    violations: list[str]


class Result(msgspec.Struct, kw_only=True):
    """The whole run; `requests` by kind, those without an answer apart."""

    seed: int
    store: str
    cycles: list[Cycle]
    kills: dict[str, int]
    requests: dict[str, int]
    rebuilt: bool
    violations: list[str]


class Chaos:
    """One installation, its clients, and who kills."""

    def __init__(self, bus: Bus, parts: Parts, store: ObjectStore, seed: int) -> None:
        self._bus = bus
        self._parts = parts
        self._chance = random.Random(seed)  # noqa: S311 - a plan to repeat
        self._ledger = Ledger()
        self.load = Load(bus, self._ledger, seed)
        self._heard = Acknowledged(bus, self.load, self._ledger)
        self.check = Check(bus, self._ledger, self.load, store)
        self.kills: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def begun(self) -> AsyncIterator[None]:
        """Everything serves meanwhile, and evictions are heard."""
        await self._all_serve()
        try:
            async with self._heard.listening():
                yield
        finally:
            await self.load.close()

    async def cycle(self, number: int) -> Cycle:
        """Kill under load, wait until all serve again, check."""
        began, known = time.monotonic(), len(self.load.violations)
        before = self._writes()
        victims = self._chance.sample(
            [name for name in VICTIMS if name in self._parts.all], self._chance.randint(1, 3)
        )
        stopping = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.load.run(stopping))
            await asyncio.gather(*(self._kill(name) for name in victims))
            await self._all_serve()
            await asyncio.sleep(SETTLE_SECONDS)
            stopping.set()
        counts = await self.check.run()
        return Cycle(
            number=number,
            killed=victims,
            writes=self._writes() - before,
            seconds=time.monotonic() - began,
            counts=counts,
            violations=self.load.violations[known:],
        )

    async def rebuilds(self) -> bool:
        """Whether the objects alone give the entries that there are; archivers begin anew."""
        archivers = [part for name, part in self._parts.all.items() if name.startswith("archive")]
        self._parts.all["cache"].kill()  # nothing is evicted meanwhile
        await self.check.drain()
        before = await patiently(self.check.listing)
        for archiver in archivers:
            archiver.kill()
        for key in await self._bus.bucket("archive").items():
            await self._bus.bucket("archive").purge(key)
        for archiver in archivers:
            archiver.start()
        after = await patiently(self.check.listing)
        now = time.time()
        same = {one.key: one for one in before} | {one.key: one for one in after}
        return all(
            one in before and one in after
            for one in same.values()
            if one.expires_at is None or one.expires_at.timestamp() > now
        )

    async def _kill(self, name: str) -> None:
        at, down = self._chance.random(), self._chance.random()
        await asyncio.sleep(at * KILL_WITHIN_SECONDS)
        part = self._parts.all[name]
        await asyncio.to_thread(part.kill)
        self.kills[name] += 1
        await asyncio.sleep(down * DOWN_SECONDS.get(name, 3.0))
        await asyncio.to_thread(part.start)

    async def _all_serve(self) -> None:
        async def is_serving() -> bool:
            await self._bus.request("cache.default.exists", b"probe", timeout_seconds=1)
            await self._bus.request("api.archive.status.default", timeout_seconds=1)
            return True

        await until(is_serving, START_SECONDS)

    def _writes(self) -> int:
        return sum(n for kind, n in self.load.counts.items() if not kind.startswith("get"))


async def run(cycles: int, seed: int, parts: Parts, console: Console) -> Result:
    """Run so many cycles, each told as it ends."""
    async with contextlib.AsyncExitStack() as leaving:
        leaving.callback(parts.stop)
        await parts.start()
        store = make_store(parts)
        await store.open()
        leaving.push_async_callback(store.close)
        bus = await connect(parts.url, name="chaos", deadline_seconds=START_SECONDS)
        leaving.push_async_callback(bus.close)
        await ensure_streams(bus)
        parts.start_services()
        chaos = Chaos(bus, parts, store, seed)
        done: list[Cycle] = []
        async with chaos.begun():
            for number in range(1, cycles + 1):
                with console.status(f"cycle {number} of {cycles}"):
                    done.append(await chaos.cycle(number))
                tell(console, done[-1])
            with console.status("the index from the objects alone"):
                rebuilt = await chaos.rebuilds()
        if not rebuilt:
            chaos.load.violation("the objects alone do not give the same entries")
        return Result(
            seed=seed,
            store=store.description,
            cycles=done,
            kills=dict(chaos.kills),
            requests=dict(chaos.load.counts),
            rebuilt=rebuilt,
            violations=chaos.load.violations,
        )


def make_store(parts: Parts) -> ObjectStore:
    """The archivers' store, to look into."""
    settings = ArchiveSettings(store=parts.store) if parts.store else ArchiveSettings()
    found = settings.bucket_and_prefix
    if found is None:
        return FolderStore(parts.folder / "objects", [BlockingThread("store")])
    return S3Store(*found, S3Settings(endpoint_url=parts.s3_url))


def tell(console: Console, cycle: Cycle) -> None:
    """One row for a cycle, below its columns' names."""
    if cycle.number == 1:
        names = " ".join(f"{name:>{width}}" for name, width in COLUMNS.items())
        console.print(f"cycle seconds writes {names} killed".replace("_", "-"), soft_wrap=True)
    counts = " ".join(f"{getattr(cycle.counts, name):{width}}" for name, width in COLUMNS.items())
    row = f"{cycle.number:5} {cycle.seconds:7.1f} {cycle.writes:6} {counts}"
    console.print(f"{row} {' '.join(cycle.killed)}", highlight=False, soft_wrap=True)
    for violation in cycle.violations:
        console.print(f"VIOLATED {violation}", style="bold red", markup=False, soft_wrap=True)


def summary(result: Result) -> Table:
    """What the run did and found, for reading."""
    table = Table("", "", show_header=False)
    last = result.cycles[-1].counts
    table.add_row("cycles, seed", f"{len(result.cycles)}, {result.seed}")
    table.add_row("store", result.store)
    table.add_row("kills", ", ".join(f"{n} {name}" for name, n in sorted(result.kills.items())))
    for name in COLUMNS:
        table.add_row(name.replace("_", " "), f"{getattr(last, name):,}")
    read_back = sum(cycle.counts.readable for cycle in result.cycles)
    table.add_row("read back, all checks", f"{read_back:,}")
    for name, count in sorted(result.requests.items()):
        table.add_row(name, f"{count:,}")
    table.add_row("index from the objects alone", "the same" if result.rebuilt else "DIFFERS")
    table.add_row("violations", str(len(result.violations)))
    return table


def main() -> None:
    """Run it with the command line's numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cycles", type=int, default=50, help="1 or more; each takes 10 to 20 s, 3 are a first try"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--s3",
        choices=(*KINDS, "folder"),
        default="rclone",
        help="server to start and kill; folder: none, the store is a folder",
    )
    parser.add_argument("--rclone", default="", help="program, 1.65 or newer; else the one found")
    parser.add_argument("--s3-url", default="", help="use this running server, and kill it not")
    parser.add_argument("--bucket", default="chaos", help="of that server")
    parser.add_argument(
        "--another-host",
        action="store_true",
        help="large evictions are lent as to archivers on another host, which ask for parts",
    )
    parser.add_argument("--json", action="store_true", help="result as JSON on stdout")
    asked = parser.parse_args()
    if asked.cycles < 1:
        parser.error(
            f"--cycles {asked.cycles}: at least 1, as every guarantee is checked after one"
        )
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    console = Console(stderr=asked.json)
    starts = not asked.s3_url and asked.s3 != "folder"
    try:
        s3 = s3_server(asked.s3, folder / "s3", asked.rclone) if starts else None
    except AssertionError as error:
        shutil.rmtree(folder)
        parser.error(f"{error}; --s3 folder needs no server")
    log.configure("error")  # that a server is gone for a moment is meant
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what was started, as ^C does
    parts = Parts(
        folder, s3, s3_url=asked.s3_url, bucket=asked.bucket, same_host=not asked.another_host
    )
    try:
        result = asyncio.run(run(asked.cycles, asked.seed, parts, console))
    except KeyboardInterrupt:
        sys.exit(f"stopped; logs in {folder}")
    if asked.json:
        print(msgspec.json.encode(result).decode())
    else:
        console.print(summary(result))
    if result.violations:
        sys.exit(f"seed {asked.seed}: {len(result.violations)} violations; logs in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
