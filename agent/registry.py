"""Who is there: this service's own registration, and a view of all the others."""

import contextlib
from collections.abc import Awaitable, Callable, Mapping

import msgspec
import structlog

from agent.bus import Bus
from schemas.lifecycle import Deregistered, Heartbeat, InstanceRecord, Registered
from schemas.message import UNDECODABLE
from schemas.protocols import Delivery, PublishError, RevisionConflictError
from schemas.units import SECOND_NS, instant, to_ns

log = structlog.get_logger()

STALE_HEARTBEATS = 2
TAKE_OVER_TRIES = 5


class NameTakenError(RuntimeError):
    """Another machine or state folder runs under this name."""


def age_seconds(record: InstanceRecord, now_ns: int) -> float:
    """Seconds since the record's last heartbeat; 0 where the clocks disagree."""
    return max(0.0, (now_ns - to_ns(record.heartbeat_at)) / SECOND_NS)


def is_stale(record: InstanceRecord, now_ns: int) -> bool:
    """Whether two heartbeats in a row are missing."""
    return age_seconds(record, now_ns) > STALE_HEARTBEATS * record.heartbeat_seconds


class Registration:
    """This service's record in the bucket `fleet-registry` and its lifecycle events.

    The record is written by compare and set. A restart on the same machine and state folder
    takes its name over; anyone else's live record is left alone and NameTakenError names both.
    """

    def __init__(self, bus: Bus, clock: Callable[[], int]) -> None:
        self._bus = bus
        self._clock = clock
        self._bucket = bus.bucket("registry")
        self._revision = 0

    @staticmethod
    def key(record: InstanceRecord) -> str:
        """`<role>.<instance>`."""
        return f"{record.role}.{record.instance}"

    async def register(self, record: InstanceRecord) -> None:
        """Take the name and announce it.

        Raises:
            NameTakenError: somebody else runs under it.
            PublishError: the server does not answer.
        """
        key = self.key(record)
        for _ in range(TAKE_OVER_TRIES):
            found = await self._bucket.get(key)
            try:
                if found is None:
                    self._revision = await self._bucket.create(key, msgspec.json.encode(record))
                    break
                self._refuse_if_taken(record, found[0])
                self._revision = await self._bucket.update(
                    key, msgspec.json.encode(record), found[1]
                )
                break
            except RevisionConflictError:
                continue
        else:
            raise NameTakenError(
                f"{record.role} {record.instance!r}: another process keeps taking this name"
            )
        await self._bus.publish(
            Registered(
                role=record.role,
                instance=record.instance,
                observed_at=instant(self._clock()),
                record=record,
            )
        )

    def _refuse_if_taken(self, record: InstanceRecord, value: bytes) -> None:
        try:
            there = msgspec.json.decode(value, type=InstanceRecord)
        except UNDECODABLE:
            return
        same_place = (there.machine, there.identity) == (record.machine, record.identity)
        if same_place or is_stale(there, self._clock()):
            return
        raise NameTakenError(
            f"the name {record.instance!r} ({record.role}) is in use by {there.machine}, pid "
            f"{there.pid}, state folder {there.identity}; this is {record.machine}, state folder "
            f"{record.identity}. Choose another with --node or --instance, or stop that one"
        )

    async def beat(self, record: InstanceRecord) -> None:
        """Renew the record and say so. A lost bucket entry is written anew.

        Raises:
            NameTakenError: somebody else took the name while we were away.
            PublishError: the server does not answer.
        """
        key = self.key(record)
        try:
            self._revision = await self._bucket.update(
                key, msgspec.json.encode(record), self._revision
            )
        except RevisionConflictError:
            await self.register(record)
        await self._bus.publish(
            Heartbeat(
                role=record.role,
                instance=record.instance,
                observed_at=instant(self._clock()),
                record=record,
            )
        )

    async def deregister(self, record: InstanceRecord, reason: str) -> None:
        """Remove the record and say so; best effort, as the entry expires by itself."""
        with contextlib.suppress(PublishError, RevisionConflictError):
            await self._bucket.delete(self.key(record), self._revision)
            await self._bus.publish(
                Deregistered(
                    role=record.role,
                    instance=record.instance,
                    observed_at=instant(self._clock()),
                    reason=reason,
                )
            )


class RegistryView:
    """All records of the bucket, kept current by following it.

    A record that expires in the bucket sends no event: age tells (`is_stale`), and a record
    older than the bucket's time to live is forgotten here too.
    """

    FORGET_SECONDS = 90.0

    def __init__(self, bus: Bus, clock: Callable[[], int]) -> None:
        self._bus = bus
        self._clock = clock
        self._records: dict[str, InstanceRecord] = {}
        self._unfollow: Callable[[], Awaitable[None]] | None = None

    async def open(self) -> None:
        """Read what is there and follow it from now on."""
        bucket = self._bus.names.bucket("registry")
        self._prefix = f"$KV.{bucket}."
        self._unfollow = await self._bus.follow(f"KV_{bucket}", self._take, last_per_subject=True)

    async def close(self) -> None:
        """Stop following."""
        if self._unfollow is not None:
            await self._unfollow()

    def _take(self, delivery: Delivery) -> None:
        key = delivery.subject.removeprefix(self._prefix)
        if delivery.headers.get("KV-Operation") in ("DEL", "PURGE"):
            self._records.pop(key, None)
        else:
            self._records[key] = msgspec.json.decode(delivery.payload, type=InstanceRecord)

    def records(self) -> Mapping[str, InstanceRecord]:
        """Records by `<role>.<instance>`."""
        now_ns = self._clock()
        for key, record in list(self._records.items()):
            if age_seconds(record, now_ns) > self.FORGET_SECONDS:
                del self._records[key]
        return self._records

    def names(self, role: str) -> list[str]:
        """The instances of `role` that were heard of in the last 90 s, dead ones included."""
        return [record.instance for record in self.records().values() if record.role == role]

    def count_live(self, role: str) -> int:
        """How many instances of `role` are there and not stale."""
        now_ns = self._clock()
        return sum(
            1
            for record in self.records().values()
            if record.role == role and not is_stale(record, now_ns)
        )
