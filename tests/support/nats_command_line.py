"""What the NATS command line sends, byte for byte, over a bare socket.

Written from natscli 0.4 and the libraries it uses (nats.go, jsm.go): the same CONNECT, inboxes,
headers, request bodies and order. It answers the server's PINGs and nothing else.
"""

import asyncio
import json
import secrets
import string
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

SECONDS = 5.0
QUIET_SECONDS = 0.3  # natscli: how long it waits for one more answer
ALPHABET = string.digits + string.ascii_letters


class Received(NamedTuple):
    """One message, or an error of the server (then `subject` is empty)."""

    subject: str
    payload: bytes
    headers: dict[str, str]
    error: str = ""

    def json(self) -> dict[str, Any]:
        assert not self.error, self.error
        return dict(json.loads(self.payload))


class CommandLine:
    """One `nats …` process: connects, sends one command, reads what comes."""

    def __init__(self, url: str, inbox_prefix: str = "_INBOX") -> None:
        self._url = urlsplit(url)
        self._inbox = f"{inbox_prefix}.{_nuid()}"
        self._sids = 0

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(
            self._url.hostname, self._url.port
        )
        assert (await self._reader.readline()).startswith(b"INFO ")
        options: dict[str, Any] = {
            "verbose": False, "pedantic": False, "tls_required": False, "lang": "go",
            "name": "NATS CLI Version 0.4.0", "version": "1.52.0", "protocol": 1, "echo": True,
            "headers": True, "no_responders": True,
        }  # fmt: skip
        if self._url.username:
            options |= {"user": self._url.username, "pass": self._url.password}
        self._send(f"CONNECT {json.dumps(options)}\r\nPING\r\n")
        assert await self._reader.readline() == b"PONG\r\n"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def sub(self, subject: str) -> None:
        """`nats sub SUBJECT`; returns when the server has taken it or said why not."""
        self._subscribe(subject)
        self._send("PING\r\n")

    async def req(self, subject: str, body: str) -> Received:
        """`nats req SUBJECT BODY`."""
        self._publish(subject, body.encode(), reply=self._listen())
        return await self.next()

    async def micro_ls(self) -> list[Received]:
        """`nats micro ls`."""
        return await self._gather("$SRV.INFO")

    async def micro_stats(self, service: str) -> list[Received]:
        """`nats micro stats SERVICE`."""
        return await self._gather(f"$SRV.STATS.{service}")

    async def micro_info(self, service: str) -> tuple[Received, Received]:
        """`nats micro info SERVICE`: one instance's information, then its statistics."""
        (info,) = await self._gather(f"$SRV.INFO.{service}", at_most=1)
        (stats,) = await self._gather(f"$SRV.STATS.{service}.{info.json()['id']}", at_most=1)
        return info, stats

    async def stream_ls(self) -> Received:
        """`nats stream ls`."""
        return await self._jetstream("STREAM.LIST", {"offset": 0})

    async def sub_all(self, subject: str) -> list[Received]:
        """`nats sub SUBJECT --all`, up to the last message that is there."""
        names = await self._jetstream("STREAM.NAMES", {"offset": 0, "subject": subject})
        if names.error:
            return [names]
        (stream,) = names.json()["streams"]
        assert (await self._jetstream(f"STREAM.INFO.{stream}", None)).json()["config"]
        consumer = _nuid()[:8]
        config = {
            "deliver_policy": "all", "ack_policy": "none", "filter_subject": subject,
            "replay_policy": "instant", "num_replicas": 0,
        }  # fmt: skip
        made = await self._jetstream(
            f"CONSUMER.CREATE.{stream}.{consumer}.{subject}",
            {"stream_name": stream, "config": config, "action": "create"},
        )
        waiting = made.json()["num_pending"]
        pull = {"expires": 30_000_000_000, "batch": 500, "idle_heartbeat": 15_000_000_000}
        self._publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}",
            json.dumps(pull).encode(),
            reply=self._listen(),
        )
        return [await self.next() for _ in range(waiting)]

    async def kv_put(self, bucket: str, key: str, value: str) -> Received:
        """`nats kv put BUCKET KEY VALUE`."""
        bound = await self._jetstream(f"STREAM.INFO.KV_{bucket}", None)
        if bound.error:
            return bound
        self._publish(f"$KV.{bucket}.{key}", value.encode(), reply=self._listen())
        return await self.next()

    async def next(self) -> Received:
        """The next message or error; PONG answers are passed over."""
        async with asyncio.timeout(SECONDS):
            while True:
                line = (await self._reader.readuntil(b"\r\n"))[:-2].decode()
                word, _, rest = line.partition(" ")
                if word == "-ERR":
                    return Received("", b"", {}, rest.strip("'"))
                if word == "PING":
                    self._send("PONG\r\n")
                if word in ("MSG", "HMSG"):
                    return await self._message(word, rest.split())

    async def settle(self) -> str:
        """The first error of what was sent so far; empty if there was none."""
        self._send("PING\r\n")
        error = ""
        async with asyncio.timeout(SECONDS):
            while (line := await self._reader.readuntil(b"\r\n")) != b"PONG\r\n":
                if line.startswith(b"-ERR"):
                    error = error or line.decode().strip()
        return error

    async def _message(self, word: str, fields: list[str]) -> Received:
        size = int(fields[-1])
        content = (await self._reader.readexactly(size + 2))[:-2]
        if word == "MSG":
            return Received(fields[0], content, {})
        head_size = int(fields[-2])
        status, *lines = content[:head_size].decode().rstrip("\r\n").split("\r\n")
        headers = {name: value.strip() for name, _, value in (one.partition(":") for one in lines)}
        if len(status.split()) > 1:
            headers["Status"] = status.split()[1]
        return Received(fields[0], content[head_size:], headers)

    async def _gather(self, subject: str, at_most: int | None = None) -> list[Received]:
        inbox = self._listen()
        if at_most is not None:
            self._send(f"UNSUB {self._sids} {at_most}\r\n")
        self._publish(subject, b"{}", reply=inbox, headers={"Accept-Encoding": "snappy"})
        answers = [await self.next()]
        while len(answers) != at_most and not answers[-1].error:
            try:
                async with asyncio.timeout(QUIET_SECONDS):
                    answers.append(await self.next())
            except TimeoutError:
                break
        return answers

    async def _jetstream(self, name: str, body: object) -> Received:
        payload = b"" if body is None else json.dumps(body).encode()
        self._publish(f"$JS.API.{name}", payload, reply=self._listen())
        return await self.next()

    def _listen(self) -> str:
        inbox = f"{self._inbox}.{_nuid()[:8]}"
        self._subscribe(inbox)
        return inbox

    def _subscribe(self, subject: str) -> None:
        self._sids += 1
        self._send(f"SUB {subject}  {self._sids}\r\n")

    def _publish(
        self, subject: str, payload: bytes, *, reply: str, headers: dict[str, str] | None = None
    ) -> None:
        if not headers:
            self._send(f"PUB {subject} {reply} {len(payload)}\r\n", payload, b"\r\n")
            return
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"NATS/1.0\r\n{lines}\r\n".encode()
        size = len(head) + len(payload)
        self._send(f"HPUB {subject} {reply} {len(head)} {size}\r\n", head, payload, b"\r\n")

    def _send(self, *parts: str | bytes) -> None:
        self._writer.write(b"".join(p.encode() if isinstance(p, str) else p for p in parts))


def _nuid() -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(22))
