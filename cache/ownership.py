"""The durable record of a namespace: who owned it last is outlived by its epoch and generation."""

import msgspec

from schemas.message import UNDECODABLE
from schemas.protocols import Bucket, RevisionConflictError

TRIES = 5


class OwnershipError(Exception):
    """The record is not ours to change any more, or cannot be read; the text says which."""


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    epoch_ms: int
    generation: int


class Ownership:
    """Epoch and generation of one namespace, in the state bucket under `cache.<namespace>`.

    `epoch_ms` grows with every owner, also when the wall clock steps back; `generation` grows
    with every clear. Both are written by compare-and-set before anything depends on them.
    """

    def __init__(self, state: Bucket, namespace: str) -> None:
        self._state = state
        self._key = f"cache.{namespace}"
        self._revision = 0
        self.epoch_ms = 0
        self.generation = 0

    async def take_over(self, now_ms: int, *, new_generation: bool) -> None:
        """Begin an epoch above every earlier one; `new_generation` leaves the archive behind.

        Raises:
            OwnershipError: somebody else keeps writing the record, or it is unreadable.
            PublishError: the server does not answer.
        """
        for _ in range(TRIES):
            stored = await self._read()
            if stored is None:
                wanted = _Record(epoch_ms=now_ms, generation=1)
            else:
                wanted = _Record(
                    epoch_ms=max(now_ms, stored.epoch_ms + 1),
                    generation=stored.generation + new_generation,
                )
            if await self._write(wanted):
                return
        raise OwnershipError(f"somebody else keeps writing {self._key}")

    async def raise_generation(self, to: int | None = None) -> int:
        """Persist the next generation, or a higher one where it is named; return what it is.

        Raises:
            OwnershipError: another instance took the namespace over.
            PublishError: the server does not answer; the generation may or may not be raised.
        """
        for _ in range(TRIES):
            wanted = self.generation + 1 if to is None else max(to, self.generation)
            if await self._write(_Record(epoch_ms=self.epoch_ms, generation=wanted)):
                return self.generation
            # A write of ours that seemed to fail may have come through after all.
            stored = await self._read()
            if stored is None or stored.epoch_ms != self.epoch_ms:
                raise OwnershipError("another instance took the namespace over")
            self.generation = stored.generation
        raise OwnershipError(f"somebody else keeps writing {self._key}")

    async def _read(self) -> _Record | None:
        found = await self._state.get(self._key)
        if found is None:
            self._revision = 0
            return None
        value, self._revision = found
        try:
            return msgspec.json.decode(value, type=_Record)
        except UNDECODABLE as error:
            raise OwnershipError(f"the record {self._key} is unreadable: {error}") from error

    async def _write(self, record: _Record) -> bool:
        value = msgspec.json.encode(record)
        try:
            if self._revision:
                self._revision = await self._state.update(self._key, value, self._revision)
            else:
                self._revision = await self._state.create(self._key, value)
        except RevisionConflictError:
            return False
        self.epoch_ms, self.generation = record.epoch_ms, record.generation
        return True
