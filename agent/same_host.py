"""Large values of a cache on the same host: read from its files, put by handing a file over.

All copies release the GIL. Nothing maps a file: one that is cut short is an OSError, no signal.
"""

import asyncio
import contextlib
import fcntl
import os
import secrets
import stat
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TypeVar

import msgspec

from agent.asking import Asking
from agent.bus import Bus
from schemas.api import Read, Touched, TouchedReply
from schemas.cache import decode_header
from schemas.message import UNDECODABLE
from schemas.protocols import Answer, RequestError

T = TypeVar("T")

MIN_BYTES = 256 * 1024
"""Smaller values are put quicker over the bus."""
THREAD_BYTES = 2 * 1024 * 1024
"""Larger copies run in a thread: they would hold up the event loop for longer than it takes one."""
KEPT_FILES = 256
TRUST_SECONDS = 2.0
"""How long after its last answer an instance is taken for the namespace's owner."""
REPORT_SECONDS = 0.1
REPORT_KEYS, REPORT_BYTES = 1000, 100 * 1024
SWEEP_SECONDS = 0.1
ELSEWHERE_SECONDS = 30.0
"""How long a cache whose files cannot be reached or take no more is not asked for them again."""
TIMEOUT_SECONDS = 5.0


class _Inbox(msgspec.Struct):
    """All that is wanted of `stats`: whatever else it says must not stop a put."""

    inbox: str


class OpenFile:
    """One version of a value, open: it stays readable and the same whatever the cache does.

    Its descriptor is closed with this object, so never under a thread that reads.
    """

    def __init__(self, path: str, answer: Answer) -> None:
        """Open the file of an answer.

        Raises:
            OSError: it is not there, or not a file of this user with the size that was told.
        """
        self.version = answer.headers["Fleet-Version"]
        self.size_bytes = int(answer.headers["Fleet-Size"])
        expires_at = answer.headers.get("Fleet-Expires-At")
        self._expires_at = datetime.fromisoformat(expires_at).timestamp() if expires_at else None
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        found = os.fstat(self._fd)
        is_file = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
        if not is_file or found.st_size != self.size_bytes:
            raise OSError(f"{path} is not the value's file")

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)

    @property
    def is_current(self) -> bool:
        """False once the value was evicted, deleted, replaced, or has expired."""
        if self._expires_at is not None and self._expires_at <= time.time():
            return False
        return os.fstat(self._fd).st_nlink > 0

    async def read(self) -> bytes:
        """The value; OSError where somebody cut the file."""
        value = await self._run(lambda: os.pread(self._fd, self.size_bytes, 0))
        if len(value) != self.size_bytes:
            raise OSError("the value's file was cut short")
        return value

    async def read_into(self, buffer: memoryview) -> int:
        """Write the value to the start of `buffer`; its size. OSError where somebody cut the file.

        Raises:
            ValueError: the buffer is too small; nothing was written.
        """
        if self.size_bytes > buffer.nbytes:
            raise ValueError(f"value of {self.size_bytes} bytes, buffer of {buffer.nbytes} bytes")
        target = [buffer[: self.size_bytes]]
        if await self._run(lambda: os.preadv(self._fd, target, 0)) != self.size_bytes:
            raise OSError("the value's file was cut short")
        return self.size_bytes

    async def _run(self, copy: Callable[[], T]) -> T:
        if self.size_bytes < THREAD_BYTES:
            return copy()
        return await _in_thread(copy)


class SameHost:
    """The files of one namespace that this client reads and writes.

    Whether the cache is on this host is known only by opening a file. Values read lately are kept
    open, at most `kept_files` of them, and read again without a message while their owner has
    answered within `TRUST_SECONDS`: an owner that was replaced cannot be seen sooner. Such reads
    are reported in batches, and every answer to a report renews the trust. What the cache gave up
    meanwhile is closed within `SWEEP_SECONDS`, so that its memory is free again.
    """

    def __init__(self, bus: Bus, namespace: str, who: Mapping[str, str] | None = None) -> None:
        """`who`: headers of every request."""
        self.kept_files = KEPT_FILES
        self._who = who or {}
        self._bus = bus
        self._subject = f"cache.{namespace}"
        self._kept: OrderedDict[bytes, OpenFile] = OrderedDict()
        self._instance = ""
        self._trusted_until = 0.0
        self._elsewhere_until = 0.0
        self._inbox = ""
        self._puts_elsewhere_until = 0.0
        self._reads: dict[tuple[bytes, str], int] = {}
        self._read_bytes = 0
        self._report: asyncio.Task[None] | None = None
        self._sweeping: asyncio.TimerHandle | None = None

    @property
    def is_possible(self) -> bool:
        """Whether to ask for files; not for a while after the cache was found to be elsewhere."""
        return time.monotonic() >= self._elsewhere_until

    def kept(self, key: bytes) -> OpenFile | None:
        """The value of `key`, if it is open and still is what the cache would answer."""
        file = self._kept.get(key)
        if file is None or time.monotonic() >= self._trusted_until or self._is_report_full:
            return None
        if not file.is_current:
            del self._kept[key]
            return None
        self._kept.move_to_end(key)
        self._note_read(key, file.version)
        return file

    def open(self, key: bytes, answer: Answer, asked_at: float) -> OpenFile | None:
        """The file of an answer to a get sent at `asked_at`; None: get without files."""
        path = decode_header(answer.headers["Fleet-File"])
        try:
            file = OpenFile(path, answer)
        except OSError:
            if not os.path.isdir(os.path.dirname(path)):
                self._elsewhere_until = time.monotonic() + ELSEWHERE_SECONDS
            return None
        self._trust(answer.headers["Fleet-Instance"], asked_at)
        self._kept[key] = file
        self._kept.move_to_end(key)
        while len(self._kept) > self.kept_files:
            self._kept.popitem(last=False)
        if self._sweeping is None:
            self.sweep()
        return file

    def sweep(self) -> None:
        """Close what the cache gave up, and look again later while anything is open."""
        for key, file in list(self._kept.items()):
            if not file.is_current:
                del self._kept[key]
        self._sweeping = None
        if self._kept:
            loop = asyncio.get_running_loop()
            self._sweeping = loop.call_later(SWEEP_SECONDS, _sweep, weakref.ref(self))

    async def put(
        self, value: memoryview, headers: Mapping[str, str], asking: Asking
    ) -> str | None:
        """Hand the value over in a file; its version, or None: put it over the bus.

        The file is closed before the cache hears of it, so a client that is stopped or killed
        meanwhile leaves nothing but a file that the cache removes.

        Raises:
            RequestError: the cache refuses the value, or does not answer.
        """
        if value.nbytes < MIN_BYTES or time.monotonic() < self._puts_elsewhere_until:
            return None
        # The one learned earlier may be that of an instance which is no longer the owner.
        for is_learned in (True, False):
            inbox = self._inbox if is_learned else await self._ask_inbox(asking)
            if inbox is None:
                return None
            self._inbox = inbox
            if inbox:
                with contextlib.suppress(OSError):
                    version = await self._put(value, headers, asking)
                    if version:
                        return version
        self._puts_elsewhere_until = time.monotonic() + ELSEWHERE_SECONDS
        return None

    async def close(self) -> None:
        """Close the files and report the last reads."""
        self._kept.clear()
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._report is not None:
            await self._report
        if self._reads:
            await self._send_report()

    async def _put(
        self, value: memoryview, headers: Mapping[str, str], asking: Asking
    ) -> str | None:
        name = secrets.token_hex(16)
        path = f"{self._inbox}/{name}"
        _check_inbox(self._inbox)
        try:
            if value.nbytes < THREAD_BYTES:
                _write(path, value)
            else:
                await _in_thread(lambda: _write(path, value))
            answer = await asking.ask(
                "put", b"", {**headers, "Fleet-Size": str(value.nbytes), "Fleet-File": name}
            )
        except RequestError as error:
            if error.code in (404, 429):
                return None
            raise
        finally:
            # Not there any more if the cache took it; else it must not be taken later.
            with contextlib.suppress(OSError):
                os.unlink(path)
        return answer.headers["Fleet-Version"]

    async def _ask_inbox(self, asking: Asking) -> str | None:
        try:
            answer = await asking.ask("stats")
            return msgspec.json.decode(answer.payload, type=_Inbox).inbox
        except (RequestError, *UNDECODABLE):
            return None  # the put over the bus will tell what is wrong

    def _trust(self, instance: str, asked_at: float) -> None:
        if instance != self._instance:
            self._kept.clear()
            self._instance = instance
        self._trusted_until = max(self._trusted_until, asked_at + TRUST_SECONDS)

    def _note_read(self, key: bytes, version: str) -> None:
        hits = self._reads.get((key, version), 0)
        self._reads[key, version] = hits + 1
        if not hits:
            self._read_bytes += len(key)
        if self._report is None or self._report.done():
            self._report = asyncio.get_running_loop().create_task(self._report_soon())

    @property
    def _is_report_full(self) -> bool:
        return len(self._reads) >= REPORT_KEYS or self._read_bytes >= REPORT_BYTES

    async def _report_soon(self) -> None:
        await asyncio.sleep(REPORT_SECONDS)
        await self._send_report()

    async def _send_report(self) -> None:
        reads, self._reads, self._read_bytes = self._reads, {}, 0
        asked_at = time.monotonic()
        request = Touched(
            reads=[
                Read(key=key.decode(), version=version, hits=hits)
                for (key, version), hits in reads.items()
            ]
        )
        # Not answered: what is kept is no longer trusted after a while, which is all that matters.
        with contextlib.suppress(RequestError):
            answer = await self._bus.request(
                f"{self._subject}.touched",
                msgspec.json.encode(request),
                self._who,
                timeout_seconds=TIMEOUT_SECONDS,
            )
            reply = msgspec.json.decode(answer.payload, type=TouchedReply)
            if not reply.counted:  # the cache was switched off, or keys are others' now
                self._kept.clear()
            self._trust(reply.instance, asked_at)


def _sweep(reference: "weakref.ref[SameHost]") -> None:
    """A timer holds no client that nobody else holds any more."""
    files = reference()
    if files is not None:
        files.sweep()


async def _in_thread(copy: Callable[[], T]) -> T:
    """Run `copy` in a thread; when cancelled, end after it: no buffer is written late."""
    copying = asyncio.get_running_loop().run_in_executor(None, copy)
    try:
        return await asyncio.shield(copying)
    except asyncio.CancelledError:
        await asyncio.wait([copying])
        raise


def _check_inbox(inbox: str) -> None:
    """Write only where nobody but this user and its cache can be.

    Raises:
        OSError: it is not there, not on this host, or another user's.
    """
    found = os.lstat(inbox)
    is_private = stat.S_ISDIR(found.st_mode) and not stat.S_IMODE(found.st_mode) & 0o077
    if not is_private or found.st_uid != os.geteuid():
        raise PermissionError(f"{inbox} is not a private folder of this user")


def _write(path: str, value: memoryview) -> None:
    """Write and close the file; locked meanwhile, so that it is not taken for an abandoned one."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Room that is not reserved could be missing half-way.
        os.posix_fallocate(fd, 0, value.nbytes)
        while value:
            value = value[os.write(fd, value) :]
    finally:
        os.close(fd)
