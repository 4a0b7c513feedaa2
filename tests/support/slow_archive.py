"""An archive whose answers wait for the test."""

import asyncio

from agent.bus import Bus
from cache.archived import key_hash
from schemas.protocols import Answer, Call, Endpoint


class SlowArchive:
    """Has every key, counts the questions, and answers when `may_answer` is set."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.may_answer = asyncio.Event()
        self.answer = Answer(headers={"Fleet-Status": "miss"})

    async def _restore(self, call: Call) -> Answer:
        self.asked.append(call.payload.decode())
        await self.may_answer.wait()
        return self.answer

    async def serve(self, bus: Bus, *keys: str) -> None:
        listed = b"".join(sorted(key_hash(key).to_bytes(8, "big") for key in keys))
        await bus.serve(
            "archive",
            [
                Endpoint("keys", "api.archive.keys.*", lambda _: Answer(listed)),
                Endpoint("restore", "api.archive.restore.*", self._restore),
            ],
            description="test",
        )
