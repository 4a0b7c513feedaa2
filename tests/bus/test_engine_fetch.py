"""Fetching metrics pages from real sockets: TLS, tokens, limits, and servers that misbehave."""

import asyncio
import contextlib
import functools
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import TypeVar

import pytest
import trustme

from agent.blocking import BlockingThread
from agent.collectors.engines.fetch import Body, FetchError, PageFetcher
from agent.engine_settings import LocalTarget
from tests.support.metrics_server import MetricsServer
from tests.support.wire import impostor

T = TypeVar("T")


@pytest.fixture
async def server() -> AsyncIterator[MetricsServer]:
    server = MetricsServer(b"a 1\n")
    async with server.serve():
        yield server


async def fetch(
    target: LocalTarget | str, *, environ: Mapping[str, str] | None = None, limit: int = 65536
) -> Body:
    if isinstance(target, str):
        target = LocalTarget(url=target)
    thread = BlockingThread("test")
    fetcher = PageFetcher(target, thread.run, environ or {}, limit)
    try:
        async with asyncio.timeout(30):
            return await fetcher.fetch()
    finally:
        await fetcher.close()
        thread.close()


async def refusal(target: LocalTarget | str, **options: int | Mapping[str, str]) -> str:
    with pytest.raises(FetchError) as refused:
        await fetch(target, **options)  # type: ignore[arg-type]  # passed on as they are
    return str(refused.value)


async def test_a_page_is_asked_for_as_text_uncompressed_and_without_cookies(
    server: MetricsServer,
) -> None:
    server.headers["Set-Cookie"] = "a=b"
    thread = BlockingThread("test")
    fetcher = PageFetcher(LocalTarget(url=server.url), thread.run, {}, 65536)

    pages = [await fetcher.fetch() for _ in range(2)]
    await fetcher.close()
    thread.close()

    assert pages == [Body(b"a 1\n", is_openmetrics=False)] * 2
    assert all(head.startswith("GET /metrics HTTP/1.1\r\n") for head in server.requests)
    assert "Accept: text/plain;version=0.0.4" in server.requests[1]
    assert "Accept-Encoding: identity" in server.requests[1]
    assert "ookie" not in server.requests[1]
    assert "Authorization" not in server.requests[1]


async def test_openmetrics_is_told_apart(server: MetricsServer) -> None:
    server.content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8"

    assert (await fetch(server.url)).is_openmetrics


async def test_a_token_comes_from_a_file_that_may_change_or_from_a_variable(
    server: MetricsServer, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    by_file = LocalTarget(url=server.url, bearer_file=str(path))
    by_variable = LocalTarget(url=server.url, bearer_variable="TOKEN")

    path.write_text("first\n")
    await fetch(by_file)
    path.write_text("second")
    await fetch(by_file)
    await fetch(by_variable, environ={"TOKEN": "third"})

    sent = [head.partition("Authorization: ")[2].partition("\r\n")[0] for head in server.requests]
    assert sent == ["Bearer first", "Bearer second", "Bearer third"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        pytest.param(None, "No such file", id="no-file"),
        pytest.param("", "holds no token", id="empty"),
        pytest.param("s3cret s3cret", "holds no token", id="two-words"),
        pytest.param("s3cret\r\nX-Evil: 1", "holds no token", id="header-smuggled"),
        pytest.param("s3crét", "holds no token", id="not-ascii"),
    ],
)
async def test_a_file_without_a_token_is_named_and_not_shown(
    server: MetricsServer, tmp_path: Path, content: str | None, text: str
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content.encode())

    said = await refusal(LocalTarget(url=server.url, bearer_file=str(path)))

    assert text in said
    assert str(path) in said
    assert "s3cr" not in said
    assert server.requests == []


async def test_a_variable_that_is_not_set_is_named(server: MetricsServer) -> None:
    said = await refusal(LocalTarget(url=server.url, bearer_variable="TOKEN"))

    assert "the variable TOKEN" in said


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 Temp", "308 Perm"])
async def test_redirects_are_refused(server: MetricsServer, status: str) -> None:
    server.status, server.headers["Location"] = status, "/elsewhere"

    said = await refusal(LocalTarget(url=server.url, bearer_variable="T"), environ={"T": "s3cret"})

    assert "not followed" in said
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ("401 Unauthorized", "HTTP 401: it wants a token"),
        ("403 Forbidden", "HTTP 403: the token"),
        ("404 Not Found", "HTTP 404: there is no such path"),
        ("500 Oops", "HTTP 500"),
    ],
)
async def test_another_status_is_refused_with_a_hint(
    server: MetricsServer, status: str, text: str
) -> None:
    server.status = status

    assert text in await refusal(server.url)


async def test_another_kind_of_answer_is_refused(server: MetricsServer) -> None:
    server.content_type = "text/html; charset=utf-8"

    assert "text/html, not metrics" in await refusal(server.url)


async def test_a_compressed_answer_is_refused_unread(server: MetricsServer) -> None:
    server.headers["Content-Encoding"] = "gzip"

    assert "compressed" in await refusal(server.url)


async def test_a_page_may_be_as_large_as_the_limit_and_no_larger(server: MetricsServer) -> None:
    server.body = b"#" * 100_000

    whole = await fetch(server.url, limit=100_000)

    assert len(whole.content) == 100_000
    assert "larger than 99999 bytes" in await refusal(server.url, limit=99_999)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        pytest.param(b"", "closed the connection", id="nothing"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "not HTTP", id="another-protocol"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\na 1", "cut off", id="short"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "not HTTP",
                     id="bad-chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", "not HTTP",
                     id="long-header"),
    ],
)  # fmt: skip
async def test_what_is_no_proper_answer_is_refused(answer: bytes, text: str) -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    async with impostor(play) as port:
        said = await refusal(f"http://127.0.0.1:{port}")

    assert text in said, said


async def test_a_body_without_end_is_cut_at_the_limit() -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):
            while True:
                writer.write(b"1000\r\n" + b"#" * 4096 + b"\r\n")
                await writer.drain()

    async with impostor(play) as port:
        assert "larger than 65536" in await refusal(f"http://127.0.0.1:{port}")


async def test_nobody_there_and_no_such_host_are_told_apart() -> None:
    async with impostor(lambda _reader, _writer: asyncio.sleep(0)) as port:
        pass

    assert "cannot connect: Connection refused" in await refusal(f"http://127.0.0.1:{port}")
    assert "cannot be looked up" in await refusal("http://no-such-host.invalid:8000")


# --- TLS -----------------------------------------------------------------------------------------


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def tls_of(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names).configure_cert(context)
    return context


def ca_file(authority: trustme.CA, folder: Path, name: str = "ca.pem") -> str:
    path = folder / name
    authority.cert_pem.write_to_path(str(path))
    return str(path)


async def test_a_server_with_a_certificate_of_our_ca_is_trusted(
    authority: trustme.CA, tmp_path: Path
) -> None:
    server = MetricsServer(b"a 1\n")

    async with server.serve(tls_of(authority, "localhost")):
        page = await fetch(LocalTarget(url=server.url, ca_file=ca_file(authority, tmp_path)))

    assert page.content == b"a 1\n"


@pytest.mark.parametrize("case", ["no-ca", "another-ca", "another-name"])
async def test_a_server_that_cannot_prove_who_it_is_gets_no_token(
    authority: trustme.CA, tmp_path: Path, case: str
) -> None:
    server = MetricsServer(b"a 1\n")
    names = ["example.org"] if case == "another-name" else ["localhost"]
    trusted = {"no-ca": "", "another-ca": ca_file(trustme.CA(), tmp_path)}
    ca = trusted.get(case, ca_file(authority, tmp_path, "right.pem"))

    async with server.serve(tls_of(authority, *names)):
        target = LocalTarget(url=server.url, ca_file=ca, bearer_variable="T")
        said = await refusal(target, environ={"T": "s3cret"})

    assert "certificate is not accepted" in said
    assert server.requests == []


async def test_https_to_a_server_of_http_says_so() -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with impostor(play) as port:
        said = await refusal(f"https://127.0.0.1:{port}")

    assert "it may speak plain http" in said


@pytest.mark.parametrize(
    ("content", "text"), [(None, "No such file"), ("not a certificate", "no certificate in it")]
)
async def test_a_ca_file_that_cannot_be_used_is_named(
    server: MetricsServer, tmp_path: Path, content: str | None, text: str
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)

    said = await refusal(LocalTarget(url=server.url.replace("http:", "https:"), ca_file=str(path)))

    assert f"cannot use ca_file {path}: {text}" in said


async def test_a_renewed_ca_file_is_read_after_a_refusal(
    authority: trustme.CA, tmp_path: Path
) -> None:
    server = MetricsServer(b"a 1\n")
    path = ca_file(trustme.CA(), tmp_path)
    thread = BlockingThread("test")

    async with server.serve(tls_of(authority, "localhost")):
        fetcher = PageFetcher(LocalTarget(url=server.url, ca_file=path), thread.run, {}, 65536)
        with pytest.raises(FetchError):
            await fetcher.fetch()
        ca_file(authority, tmp_path)
        page = await fetcher.fetch()
        await fetcher.close()
    thread.close()

    assert page.content == b"a 1\n"


async def test_names_are_looked_up_in_the_targets_own_thread(server: MetricsServer) -> None:
    calls: list[Callable[[], object]] = []

    async def run(call: Callable[[], T]) -> T:
        calls.append(call)
        return call()

    fetcher = PageFetcher(LocalTarget(url=server.url), run, {}, 65536)
    await fetcher.fetch()
    await fetcher.close()

    names = [call.func.__name__ for call in calls if isinstance(call, functools.partial)]
    assert names == ["getaddrinfo"]
