"""A client of the torture test as a process: writes or reads, and ends with 3 on a wrong byte.

`python -m tests.support.same_host_worker URL ROLE NUMBER FLOORS [USER]`. A value says all over
which key, count and size it is. FLOORS is a file that all workers map: for each key the count that
was acknowledged, below which no read that begins later may fall, and the next count to write.
"""

import asyncio
import json
import mmap
import os
import random
import signal
import struct
import sys
from pathlib import Path

from agent.bus import connect
from agent.client import CacheClient
from schemas.protocols import RequestError

KEYS = 24
WRITERS = 2
MAX_BYTES = 1024 * 1024
_HEADER = struct.Struct("<QQQ")
FLOORS_BYTES = KEYS * 16
WRONG = 3


def make_value(key: int, count: int, size_bytes: int) -> bytes:
    header = _HEADER.pack(key, count, size_bytes)
    return (header * (size_bytes // _HEADER.size + 1))[:size_bytes]


class Worker:
    def __init__(self, client: CacheClient, number: int, floors: memoryview) -> None:
        self._client = client
        self._number = number
        self._floors = floors
        self._random = random.Random(os.getpid())
        self._buffer = bytearray(MAX_BYTES)
        self.did = {"puts": 0, "deletes": 0, "hits": 0, "misses": 0, "kept": 0, "refused": 0}
        kept = client.same_host.kept

        def counted(key: bytes) -> object:
            found = kept(key)
            self.did["kept"] += found is not None
            return found

        client.same_host.kept = counted  # type: ignore[method-assign,assignment]

    async def write(self) -> None:
        key = self._random.randrange(self._number, KEYS, WRITERS)
        count = self._floors[2 * key + 1]
        self._floors[2 * key + 1] = count + 1
        if self._random.random() < 0.1:
            await self._client.delete(f"k{key}")
            self.did["deletes"] += 1
        else:
            size_bytes = self._random.randrange(256 * 1024, MAX_BYTES + 1)
            await self._client.put(f"k{key}", make_value(key, count, size_bytes))
            self.did["puts"] += 1
        self._floors[2 * key] = count

    async def read(self) -> None:
        key = self._random.randrange(KEYS)
        floor = self._floors[2 * key]
        size_bytes = await self._client.get_into(f"k{key}", self._buffer)
        if size_bytes is None:
            self.did["misses"] += 1
            return
        self.did["hits"] += 1
        got_key, count, got_size = _HEADER.unpack_from(self._buffer)
        wanted = make_value(key, count, size_bytes)
        if self._buffer[:size_bytes] != wanted:
            fail(f"key {key} of {size_bytes} bytes begins with {got_key, count, got_size}: torn")
        if count < floor:
            fail(f"key {key} has {count}, older than the {floor} that was acknowledged before")


def fail(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
    os._exit(WRONG)


async def main(url: str, role: str, number: int, floors: memoryview, user: int | None) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with await connect(url, name=role, deadline_seconds=20) as bus:
        if user is not None:
            await asyncio.to_thread(os.getpid)  # what is imported late could not be any more
            os.setuid(user)
        client = CacheClient(bus)
        worker = Worker(client, number, floors)
        act = worker.write if role == "writer" else worker.read
        before = len(os.listdir("/proc/self/fd"))
        print("ready", flush=True)
        while not stop.is_set():
            try:
                await act()
            except RequestError:  # the cache is being killed or made anew
                worker.did["refused"] += 1
                await asyncio.sleep(0.01)
            await asyncio.sleep(0)
        await client.close()
        leaked = len(os.listdir("/proc/self/fd")) - before
        print(json.dumps({**worker.did, "leaked": leaked}), flush=True)


if __name__ == "__main__":
    _, url, role, number, path, *user = sys.argv
    with Path(path).open("r+b") as file:
        floors = memoryview(mmap.mmap(file.fileno(), FLOORS_BYTES)).cast("Q")
    asyncio.run(main(url, role, int(number), floors, int(user[0]) if user else None))
