"""Brings one Prometheus page over HTTP or HTTPS; the only module that imports aiohttp."""

import errno
import functools
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from agent.engine_settings import LocalTarget

T = TypeVar("T")

ACCEPT = "text/plain;version=0.0.4, application/openmetrics-text;version=1.0.0;q=0.5"
OPENMETRICS = "application/openmetrics-text"
CHUNK_BYTES = 64 * 1024
MAX_TOKEN_BYTES = 64 * 1024
_HTTP_OK = 200
_HINTS = {
    401: "it wants a token: bearer_file or bearer_variable",
    403: "the token is not accepted",
    404: "there is no such path: vLLM, SGLang and dcgm-exporter serve /metrics",
}


class FetchError(Exception):
    """A page did not come; the text says why, without token or query."""


class Body(NamedTuple):
    """A page as it came."""

    content: bytes
    is_openmetrics: bool


class Run(Protocol):
    """Runs a call that may block in the target's own thread."""

    def __call__(self, call: Callable[[], T], /) -> Awaitable[T]:
        """What `call` returns or raises."""


class PageFetcher:
    """Fetches one target's page, until it is closed.

    Every fetch makes a new connection: at one every few seconds a kept one is just what the
    server closes at that moment. Redirects are refused, as they would carry the token elsewhere.
    Names are looked up in the target's own thread: the resolvers of aiohttp and asyncio share a
    few threads among all, so that one dead name server would hold up every other engine.
    """

    def __init__(
        self, target: LocalTarget, run: Run, environ: Mapping[str, str], body_limit_bytes: int
    ) -> None:
        self._target = target
        self._run = run
        self._environ = environ
        self._body_limit_bytes = body_limit_bytes
        self._tls: ssl.SSLContext | None = None
        self._session: aiohttp.ClientSession | None = None

    async def fetch(self) -> Body:
        """The page; the caller sets a deadline.

        Raises:
            FetchError: it did not come.
        """
        headers = await self._run(self._headers)
        if self._target.parts.scheme == "https" and self._tls is None:
            self._tls = await self._run(self._make_tls)
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=_Resolver(self._run), use_dns_cache=False, force_close=True
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                auto_decompress=False,
            )
        try:
            async with self._session.get(
                self._target.address,
                headers=headers,
                allow_redirects=False,
                ssl=self._tls if self._tls is not None else True,
            ) as response:
                return await self._body(response)
        except aiohttp.ClientError as error:
            self._tls = None  # the CA file may be a new one by now
            raise FetchError(_explain(error)) from None

    async def close(self) -> None:
        """Close what is open."""
        if self._session is not None:
            await self._session.close()

    async def _body(self, response: aiohttp.ClientResponse) -> Body:
        if 300 <= response.status < 400:
            raise FetchError(
                f"HTTP {response.status} redirects elsewhere, which is not followed: "
                "give the final address"
            )
        if response.status != _HTTP_OK:
            hint = _HINTS.get(response.status)
            raise FetchError(f"HTTP {response.status}" + (f": {hint}" if hint else ""))
        if response.content_type not in ("text/plain", OPENMETRICS, "application/octet-stream"):
            raise FetchError(f"it answers {response.content_type[:80]}, not metrics")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise FetchError("it answers compressed, which was not asked for")
        content = bytearray()
        async for chunk in response.content.iter_chunked(CHUNK_BYTES):
            content += chunk
            if len(content) > self._body_limit_bytes:
                raise FetchError(f"the page is larger than {self._body_limit_bytes} bytes")
        return Body(bytes(content), response.content_type == OPENMETRICS)

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": ACCEPT, "Accept-Encoding": "identity", "User-Agent": "resource-agent"}
        token = self._token()
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return headers

    def _token(self) -> str | None:
        """Read for every scrape: Kubernetes renews such files."""
        target = self._target
        if target.bearer_variable:
            source = f"the variable {target.bearer_variable}"
            content = self._environ.get(target.bearer_variable, "")
        elif target.bearer_file:
            source = f"bearer_file {target.bearer_file}"
            try:
                with Path(target.bearer_file).expanduser().open("rb") as file:
                    content = file.read(MAX_TOKEN_BYTES).decode("ascii", "replace")
            except OSError as error:
                raise FetchError(f"cannot read {source}: {error.strerror}") from None
        else:
            return None
        token = content.strip()
        if not token or not all("!" <= character <= "~" for character in token):
            raise FetchError(f"{source} holds no token: one word of printable ASCII")
        return token

    def _make_tls(self) -> ssl.SSLContext:
        ca_file = self._target.ca_file
        try:
            return ssl.create_default_context(
                cafile=str(Path(ca_file).expanduser()) if ca_file else None
            )
        except OSError as error:  # ssl.SSLError is one
            reason = "no certificate in it" if isinstance(error, ssl.SSLError) else error.strerror
            raise FetchError(f"cannot use ca_file {ca_file}: {reason}") from None


class _Resolver(AbstractResolver):
    """Looks names up in one thread that is nobody else's."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        look_up = functools.partial(
            socket.getaddrinfo, host, port, family=family, type=socket.SOCK_STREAM
        )
        found: list[Any] = await self._run(look_up)
        return [
            ResolveResult(
                hostname=host, host=address[0], port=port, family=kind, proto=protocol, flags=0
            )
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        """Nothing to close."""


def _explain(error: aiohttp.ClientError) -> str:
    match error:
        case aiohttp.ClientConnectorCertificateError():
            reason = getattr(error.certificate_error, "verify_message", "") or "not valid"
            return f"its certificate is not accepted: {reason}; ca_file names another CA"
        case aiohttp.ClientConnectorDNSError():
            return f"the host name cannot be looked up: {error.os_error.strerror or error.os_error}"
        case aiohttp.ClientSSLError():
            return "no TLS: it may speak plain http"
        case aiohttp.ClientConnectorError():
            return f"cannot connect: {os.strerror(error.os_error.errno or errno.EHOSTUNREACH)}"
        case aiohttp.ServerDisconnectedError():
            return "it closed the connection without an answer"
        case aiohttp.ClientPayloadError():
            return "its answer was cut off"
        case aiohttp.ClientResponseError():
            return "its answer is not HTTP"
        case _:
            return f"no answer: {type(error).__name__}"
