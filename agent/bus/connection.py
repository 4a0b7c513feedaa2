"""One connection to NATS: made within a deadline, watched, remade for ever, closed."""

import asyncio
import contextlib
import dataclasses
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import nats.errors
import structlog
from nats.js import JetStreamContext

from agent.bus.cancellation import end, heed
from agent.bus.client import BusClient
from agent.bus.errors import BusError, LoginRefusedError
from agent.bus.incidents import Incidents
from agent.human import reason

log = structlog.get_logger()

START_DEADLINE_SECONDS = 5.0
PROBE_INTERVAL_SECONDS = 5.0
PROBE_TIMEOUT_SECONDS = 5.0
PENDING_BYTES = 8 * 1024 * 1024


def safe_url(url: str) -> str:
    """`url` without its password or token, for logs and messages."""
    try:
        parts = urlsplit(url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        # What does not parse may have its password anywhere.
        return "the given URL, which is not one,"
    # A name without a password is a token, as secret as a password.
    user = f"{parts.username}@" if parts.password is not None else ""
    return f"{parts.scheme}://{user}{host}{port}"


@dataclasses.dataclass(frozen=True, slots=True)
class Login:
    """Who an address logs in as: user and password, or a token, or nobody; no longer quoted."""

    user: str | None = None
    password: str | None = None
    token: str | None = None

    @classmethod
    def of(cls, url: str) -> Self:
        """What `url` says."""
        parts = urlsplit(url)
        if parts.username is None:
            return cls()
        if parts.password is None:
            return cls(token=unquote(parts.username))
        return cls(user=unquote(parts.username), password=unquote(parts.password))


class Connection:
    """A connection that reconnects for ever, with jittered back-off, and knows when it is dead.

    `closed` is set once it is closed for good. What goes wrong is counted in `counters`.
    """

    def __init__(self, url: str, name: str, inbox_prefix: str) -> None:
        self.url = url
        self.name = name
        self.closed: asyncio.Event = asyncio.Event()
        self._inbox_prefix = inbox_prefix
        self._incidents = Incidents(name)
        self._client = BusClient(self._incidents.count_bad_message)
        self._js: JetStreamContext = self._client.jetstream()
        self._closing = False
        self._attempt = 0
        self._probe: asyncio.Task[None] | None = None
        self._disconnected_at: float | None = None

    async def open(self, deadline_seconds: float) -> None:
        """Connect within the deadline, or raise BusError. A refused password fails at once."""
        login = Login.of(self.url)
        self._incidents.connecting = True
        connecting = asyncio.create_task(
            self._client.connect(
                self.url,
                name=self.name,
                error_cb=self._guarded(self._on_error),
                disconnected_cb=self._guarded(self._on_disconnected),
                reconnected_cb=self._guarded(self._on_reconnected),
                closed_cb=self._guarded(self._on_closed),
                lame_duck_mode_cb=self._guarded(self._on_lame_duck),
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.2,  # type: ignore[arg-type]  # used as seconds, any number
                reconnect_to_server_handler=self._next_server,
                connect_timeout=2,
                ping_interval=20,
                max_outstanding_pings=3,
                drain_timeout=10,
                pending_size=PENDING_BYTES,
                flush_timeout=5,
                inbox_prefix=self._inbox_prefix,
                # nats-py would send the address's own parts still quoted.
                user=login.user,
                password=login.password,
                token=login.token,
            )
        )
        refused = asyncio.create_task(self._incidents.login_refused.wait())
        opened = False
        try:
            async with asyncio.timeout(deadline_seconds):
                await asyncio.wait({connecting, refused}, return_when=asyncio.FIRST_COMPLETED)
                if refused.done():
                    raise LoginRefusedError(self._refusal())
                await connecting
            opened = True
        except TimeoutError:
            raise BusError(
                f"no NATS server answers at {safe_url(self.url)} within {deadline_seconds:g} s "
                f"({self.last_error or 'no answer'}); is it running (`resource-agent up` starts "
                "one), is the address right?"
            ) from None
        except (nats.errors.Error, OSError, ValueError) as error:
            raise BusError(f"cannot connect to {safe_url(self.url)}: {reason(error)}") from error
        finally:
            await end(connecting, refused)
            if not opened:
                self._closing = True
                await self._client.close()
        self._incidents.connecting = False
        self._probe = asyncio.create_task(self._watch())

    def _refusal(self) -> str:
        user = Login.of(self.url).user
        who = f"user {user!r}" if user else "no user name"
        return f"{safe_url(self.url)} refused the login ({who}): check user and password"

    async def close(self) -> None:
        """Flush and close. Safe to call twice."""
        if self._closing:
            return
        self._closing = True
        if self._probe:
            self._probe.cancel()
        with contextlib.suppress(nats.errors.Error, OSError):
            if self._client.is_connected:
                await self._client.flush(timeout=2)
        await self._client.close()

    async def abandon(self) -> None:
        """Close at once: whoever waits for the server is told that it is gone."""
        self._closing = True
        if self._probe:
            self._probe.cancel()
        await self._client.close()

    def came_back(self) -> None:
        """The server was away and is there again; what it forgot is to be made anew."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def counters(self) -> Counter[str]:
        """Every loss, refusal and bad message of this connection."""
        return self._incidents.counters

    @property
    def last_error(self) -> str:
        """What went wrong last; empty if nothing did."""
        return self._incidents.last_error

    def denial(self, subject: str) -> str:
        """In which words the server denied us something about `subject` lately; else empty."""
        return self._incidents.permission_hint(subject)

    @property
    def user(self) -> str | None:
        """Who this connection logs in as; `token` by a token; None: as nobody.

        `is_authenticated` tells whether the server cares.
        """
        login = Login.of(self.url)
        return login.user or ("token" if login.token else None)

    @property
    def is_connected(self) -> bool:
        """Whether the connection is up now."""
        return bool(self._client.is_connected)

    @property
    def server_version(self) -> tuple[int, int, int]:
        """Version of the server this connection reached last."""
        version = self._client.connected_server_version
        return (version.major, version.minor, version.patch)

    @property
    def max_payload(self) -> int:
        """Most bytes of headers and payload together that the server accepts."""
        return int(self._client.max_payload)

    async def round_trip_seconds(self, timeout_seconds: float = PROBE_TIMEOUT_SECONDS) -> float:
        """Time to the server and back.

        Raises:
            TimeoutError: no answer, or not connected.
        """
        if not self._client.is_connected:
            raise TimeoutError("not connected")
        try:
            async with asyncio.timeout(timeout_seconds):
                return float(await heed(self._client.rtt()))
        except (nats.errors.Error, OSError) as error:
            raise TimeoutError(reason(error)) from error

    def _guarded(self, callback: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        # What leaves a callback ends nats-py's read loop or its reconnection, without a word.
        async def call(*arguments: object) -> None:
            try:
                await callback(*arguments)
            except Exception:
                # Not logged: logging may be what failed.
                self.counters["callback_failures_total"] += 1

        return call

    async def _on_error(self, error: Exception) -> None:
        self._incidents.take_error(error)

    async def _on_disconnected(self) -> None:
        self.counters["disconnects_total"] += 1
        self._disconnected_at = time.monotonic()
        if not self._closing:
            log.warning("bus_disconnected", bus=self.name, url=safe_url(self.url))

    async def _on_reconnected(self) -> None:
        self._attempt = 0
        self.counters["reconnects_total"] += 1
        self.came_back()
        away = time.monotonic() - (self._disconnected_at or time.monotonic())
        log.info("bus_reconnected", bus=self.name, away_seconds=round(away, 2))

    async def _on_closed(self) -> None:
        self.closed.set()
        if not self._closing:
            log.error("bus_closed", bus=self.name, error=self.last_error)

    async def _on_lame_duck(self) -> None:
        # Where there is another server, go now; else stay until this one lets go of us.
        log.info("server_lame_duck", bus=self.name, url=safe_url(self.url))
        if len(self._client.servers) > 1:
            await asyncio.sleep(random.random())  # noqa: S311 - jitter
            await self._client.force_reconnect()

    def _next_server(self, servers: list[Any], _info: dict[str, Any]) -> tuple[Any, float]:
        # nats-py retries at a fixed pace; a fleet of agents would come back in one wave.
        self._attempt += 1
        ceiling = min(2.0, 0.05 * 2 ** min(self._attempt, 10))
        delay = 0.0 if self._attempt == 1 else random.uniform(ceiling / 2, ceiling)  # noqa: S311
        return (random.choice(servers) if servers else None), delay  # noqa: S311

    async def _watch(self) -> None:
        # The read loop can die while `is_connected` stays true; only a round trip tells.
        while True:
            await asyncio.sleep(PROBE_INTERVAL_SECONDS)
            if not self._client.is_connected:
                continue
            try:
                await self.round_trip_seconds(PROBE_TIMEOUT_SECONDS)
            except TimeoutError:
                self.counters["forced_reconnects_total"] += 1
                log.warning("bus_stalled", bus=self.name, url=safe_url(self.url))
                await self._client.force_reconnect()
