"""What goes wrong with S3, said clearly: an HTTP double and a proxy have the faults."""

import asyncio
import contextlib
import dataclasses
import datetime
import hashlib
import ipaddress
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from archive.s3 import S3Store
from archive.settings import S3Settings
from archive.store import StoredObject, StoreError
from benchmarks.moto import ACCESS_KEY, CREDENTIALS, SECRET_KEY
from tests.support.s3_double import Answer, S3Double, http, s3_error
from tests.support.wire import impostor

NAME = "ab" * 32
CONTENT = b"content " * 1000
MISSING = s3_error(404, "NoSuchKey")
EMPTY_LIST = http(200, b"<ListBucketResult/>")


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@dataclasses.dataclass(frozen=True)
class Tls:
    """A server's side of TLS, and the file that a client must trust."""

    server: ssl.SSLContext
    ca_bundle: str


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    """With a certificate for 127.0.0.1, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = tmp_path / "server.pem"
    file.write_bytes(private + certificate.public_bytes(pem))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    return Tls(server, str(file))


@contextlib.asynccontextmanager
async def s3(endpoint_url: str, **settings: Any) -> AsyncIterator[S3Store]:
    quick = {"attempts": 1, "deadline_seconds": 5.0}
    store = S3Store(
        "bucket", "prefix/", S3Settings(endpoint_url=endpoint_url, **{**quick, **settings})
    )
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param(
            s3_error(404, "NoSuchBucket"),
            "bucket bucket does not exist: create it, or correct archive.store",
            id="no bucket",
        ),
        pytest.param(
            s3_error(403, "AccessDenied", "User x may not s3:GetObject"),
            "permission denied (AccessDenied: User x may not s3:GetObject): allow s3:GetObject on "
            "bucket/prefix/*, and s3:ListBucket on bucket: without that",
            id="no permission",
        ),
        pytest.param(
            http(403), "permission denied (403: Forbidden)", id="refused by what stands before it"
        ),
        pytest.param(
            s3_error(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-west-9"}),
            "bucket bucket is in another region (it is in eu-west-9): set archive.s3.region",
            id="redirect",
        ),
        pytest.param(
            s3_error(400, "AuthorizationHeaderMalformed", more="<Region>eu-west-9</Region>"),
            "in another region (it is in eu-west-9): set archive.s3.region",
            id="wrong region",
        ),
        pytest.param(
            s3_error(403, "RequestTimeTooSkewed", date=time.time() + 3601),
            "s behind the server's): synchronise it",
            id="clock behind",
        ),
        pytest.param(
            s3_error(403, "RequestTimeTooSkewed", date=time.time() - 3600),
            "s ahead of the server's): synchronise it",
            id="clock ahead",
        ),
        pytest.param(
            s3_error(403, "InvalidAccessKeyId", f"{ACCESS_KEY} is unknown"),
            "does not accept the credentials (InvalidAccessKeyId): check access key and secret",
            id="unknown access key",
        ),
        pytest.param(
            s3_error(403, "SignatureDoesNotMatch", f"of {ACCESS_KEY} {SECRET_KEY}"),
            "does not accept the credentials (SignatureDoesNotMatch)",
            id="wrong secret",
        ),
        pytest.param(
            s3_error(400, "ExpiredToken"), "credentials have expired: renew them", id="expired"
        ),
        pytest.param(
            s3_error(400, "XAmzContentSHA256Mismatch"),
            "the server did not get what was sent (XAmzContentSHA256Mismatch",
            id="changed on the way",
        ),
        pytest.param(
            s3_error(400, "InvalidRequest", "Content-MD5 OR x-amz-checksum- is required"),
            "where it asks for a checksum, as buckets with Object Lock do, set archive.s3.check",
            id="asks for a checksum",
        ),
        pytest.param(
            s3_error(503, "SlowDown", "Reduce your rate"),
            "asks to slow down (SlowDown: Reduce your rate)",
            id="throttled",
        ),
        pytest.param(
            s3_error(507, "XMinioStorageFull"), "server has no room left", id="server full"
        ),
        pytest.param(
            s3_error(500, "InternalError", "disk 3"),
            "the server failed (InternalError: disk 3): its log says why",
            id="internal error",
        ),
        pytest.param(
            http(404, b"<html>nothing here</html>"),
            "what answers is not S3 (404)",
            id="not S3: 404",
        ),
        pytest.param(
            s3_error(400, "Teapot", "x" * 10_000), "Teapot: xxx", id="unknown code, much text"
        ),
        pytest.param(
            s3_error(501, "NotImplemented", "A header"),
            "does not know what was asked of it (GetObject: NotImplemented: A header): it needs a",
            id="not implemented",
        ),
        pytest.param(http(501), "does not know what was asked of it (GetObject: 501", id="501"),
        pytest.param(
            http(400, b"Client sent an HTTP request to an HTTPS server.\n"),
            "what answers is not S3 (400: Bad Request)",
            id="Go's answer to http where it wants https",
        ),
        pytest.param(None, "the connection broke off", id="closed without an answer"),
    ],
)
async def test_each_refusal_is_named_with_its_remedy(answer: Answer, said: str) -> None:
    async with S3Double(lambda *_: answer) as server, s3(server.url) as store:
        with pytest.raises(StoreError) as caught:
            await store.get(NAME)
        place = f"s3://bucket/prefix/ at {server.url}"

    text = str(caught.value)
    assert said in text
    assert text.startswith(f"archive {place}: ")
    assert SECRET_KEY not in text
    assert ACCESS_KEY not in text
    assert len(text) < 700


async def test_every_call_names_what_is_refused() -> None:
    async with S3Double(lambda *_: s3_error(404, "NoSuchBucket")) as server, s3(server.url) as s:
        calls = [s.put(NAME, CONTENT), s.get(NAME), s.delete(NAME), s.quarantine(NAME)]
        for call in [*calls, s.list_objects(), s.stat(NAME), s.get_range(NAME, 0, 9), s.probe()]:
            with pytest.raises(StoreError, match="bucket bucket does not exist"):
                await call


async def test_what_is_not_s3_is_named() -> None:
    page = http(200, b"<html>Welcome to the console<br></html>")

    async with S3Double(lambda *_: page) as server, s3(server.url) as store:
        with pytest.raises(StoreError, match="what answers is not S3"):
            await store.list_objects()


async def test_http_where_the_server_wants_https_is_asked_about(tls: Tls) -> None:
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(S3Double(lambda *_: http(200), tls.server))
        store = await stack.enter_async_context(s3(server.url.replace("https", "http")))
        with pytest.raises(StoreError, match=r"want https:// in archive\.s3\.endpoint_url"):
            await store.get(NAME)


async def test_https_where_the_server_has_no_tls_is_named() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(http(400))
        await writer.drain()

    async with impostor(plain) as port, s3(f"https://127.0.0.1:{port}") as store:
        with pytest.raises(StoreError, match=r"does not speak TLS: .* write http:// in archive"):
            await store.get(NAME)


async def test_https_where_nobody_speaks_is_asked_about() -> None:
    async with S3Double(lambda *_: http(200)) as server:
        url = server.url.replace("http", "https")
        async with s3(url, connect_timeout_seconds=0.5) as store:
            with pytest.raises(StoreError, match=r"want http:// in archive\.s3\.endpoint_url"):
                await store.get(NAME)


async def test_an_address_where_nobody_listens_is_named() -> None:
    url = f"http://127.0.0.1:{closed_port()}"

    async with s3(url) as store:
        with pytest.raises(StoreError, match=f"{url} cannot be reached: is the server running"):
            await store.probe()


async def test_a_name_that_does_not_resolve_is_named() -> None:
    async with s3("http://s3.invalid:9000") as store:
        with pytest.raises(StoreError, match=r"s3.invalid:9000 cannot be reached"):
            await store.probe()


@pytest.mark.parametrize(
    "limit", [{"read_timeout_seconds": 0.2}, {"deadline_seconds": 0.2}], ids=["read", "deadline"]
)
async def test_a_server_that_does_not_answer_is_given_up_in_time(limit: dict[str, float]) -> None:
    async def never(*_: object) -> Answer:
        await asyncio.Event().wait()
        return None

    async with S3Double(never) as server, s3(server.url, **limit) as store:
        with pytest.raises(StoreError, match=r"no answer within .* s: the server is slow"):
            await store.put(NAME, CONTENT)


async def test_tries_and_pauses_together_stay_within_the_deadline() -> None:
    answer = s3_error(500, "InternalError")
    async with (
        S3Double(lambda *_: answer) as server,
        s3(server.url, attempts=10, deadline_seconds=1.5) as store,
    ):
        began = time.monotonic()
        with pytest.raises(StoreError, match=r"no answer within 1.5 s"):
            await store.get(NAME)
        took_seconds = time.monotonic() - began

    assert took_seconds < 10
    assert len(server.requests) > 1


async def test_a_server_that_stumbles_is_asked_again() -> None:
    answers = iter([s3_error(503, "SlowDown"), None, http(200, CONTENT)])

    async with S3Double(lambda *_: next(answers)) as server, s3(server.url, attempts=3) as store:
        assert await store.get(NAME) == CONTENT


async def test_a_body_that_breaks_off_is_read_again() -> None:
    cut = http(200, CONTENT[:100], length=len(CONTENT))
    answers = iter([cut, cut, http(200, CONTENT)])

    async with S3Double(lambda *_: next(answers)) as server, s3(server.url, attempts=3) as store:
        assert await store.get(NAME) == CONTENT


@pytest.mark.parametrize("checksums", ["when_required", "when_supported"])
async def test_a_large_upload_is_signed_with_its_digest(checksums: str) -> None:
    content, signed = os.urandom(1024 * 1024), []

    def note(_method: str, _path: str, headers: dict[str, str]) -> Answer:
        signed.append((headers["x-amz-content-sha256"], "/s3/aws4_request" in str(headers)))
        return http(200)

    async with S3Double(note) as server, s3(server.url, checksums=checksums) as store:
        await store.put(NAME, content)

    assert signed == [(hashlib.sha256(content).hexdigest(), True)]


async def test_what_is_read_again_after_a_break_is_taken_once() -> None:
    answers = iter([http(200, CONTENT[:cut], length=len(CONTENT)) for cut in (100, 30, 200)])
    pieces: list[bytes] = []

    async with (
        S3Double(lambda *_: next(answers, http(200, CONTENT))) as server,
        s3(server.url, attempts=4) as store,
    ):
        await store.get_range_to(NAME, 0, len(CONTENT), pieces.append)

    assert b"".join(pieces) == CONTENT


async def test_a_body_that_always_breaks_off_is_a_failure_and_never_a_shorter_value() -> None:
    cut = http(200, CONTENT[:100], length=len(CONTENT))

    async with S3Double(lambda *_: cut) as server, s3(server.url, attempts=2) as store:
        for call in (store.get(NAME), store.get_range(NAME, 0, 4096)):
            with pytest.raises(StoreError, match="the connection broke off"):
                await call


async def test_other_programs_objects_are_not_listed() -> None:
    keys = (f"prefix/objects/{name}" for name in (NAME, "README", f"{NAME}.part", f"x/{NAME}"))
    contents = "".join(f"<Contents><Key>{key}</Key><Size>7</Size></Contents>" for key in keys)
    page = http(200, f"<ListBucketResult>{contents}</ListBucketResult>".encode())

    async with S3Double(lambda *_: page) as server, s3(server.url) as store:
        assert await store.list_objects() == [StoredObject(NAME, 7)]


async def test_few_requests_run_at_once_and_waiting_costs_none_its_deadline() -> None:
    async def soon(*_: object) -> Answer:
        await asyncio.sleep(0.15)
        return MISSING

    async with (
        S3Double(soon) as server,
        s3(server.url, connections=3, deadline_seconds=2.0) as store,
    ):
        # 60 / 3 x 0.15 s = 3 s
        await asyncio.gather(*(store.get(f"{number:064x}") for number in range(60)))

    assert len(server.requests) == 60
    assert server.most_at_once == 3


async def test_a_server_that_is_not_aws_is_asked_by_path() -> None:
    async with S3Double(lambda *_: MISSING) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        async with s3(url) as store:
            await store.get(NAME)

    assert server.requests == [f"GET /bucket/prefix/objects/{NAME}"]


@pytest.mark.parametrize("is_encrypted", [False, True], ids=["http", "https"])
async def test_an_upload_is_whole_and_signed_with_its_digest_without_trailers(
    tls: Tls, is_encrypted: bool
) -> None:
    seen: list[dict[str, str]] = []

    def note(_method: str, _path: str, headers: dict[str, str]) -> Answer:
        seen.append(headers)
        return http(200)

    async with (
        S3Double(note, tls.server if is_encrypted else None) as server,
        s3(server.url, ca_bundle=tls.ca_bundle) as store,
    ):
        await store.put(NAME, b"value")

    (headers,) = seen
    assert headers["x-amz-content-sha256"] == hashlib.sha256(b"value").hexdigest()
    assert headers["content-length"] == "5"
    assert not [name for name in headers if "checksum" in name or "trailer" in name]
    assert server.requests == [f"PUT /bucket/prefix/objects/{NAME}"]


async def test_a_checksum_goes_along_where_it_is_wanted() -> None:
    seen: list[dict[str, str]] = []

    def note(_method: str, _path: str, headers: dict[str, str]) -> Answer:
        seen.append(headers)
        return http(200)

    async with S3Double(note) as server, s3(server.url, checksums="when_supported") as store:
        await store.put(NAME, b"value")

    (headers,) = seen
    assert "x-amz-checksum-crc32" in headers


async def test_a_probe_writes_at_first_and_after_a_failure_and_otherwise_only_reads() -> None:
    answers: dict[str, Answer] = {"GET": MISSING, "PUT": http(200), "DELETE": http(204)}
    async with S3Double(lambda method, *_: answers[method]) as server, s3(server.url) as store:
        await store.probe()
        text = await store.probe()
        answers["GET"] = s3_error(500, "InternalError")
        with pytest.raises(StoreError):
            await store.probe()
        await store.probe()

    assert text.startswith("answers in 0.")
    methods = [request.split(" ")[0] for request in server.requests]
    assert methods == ["PUT", "DELETE", "GET", "GET", "PUT", "DELETE"]


async def test_new_credentials_are_taken_up_by_the_next_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_new(_method: str, _path: str, headers: dict[str, str]) -> Answer:
        if "credential=newkey/" in headers["authorization"]:
            return http(200)
        return s3_error(403, "InvalidAccessKeyId")

    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    async with S3Double(only_new) as server, s3(server.url) as store:
        with pytest.raises(StoreError, match="no credentials: set AWS_ACCESS_KEY_ID"):
            await store.put(NAME, b"")
        file.write_text("[default]\naws_access_key_id=OLDKEY\naws_secret_access_key=s\n")
        with pytest.raises(StoreError, match="does not accept the credentials"):
            await store.probe()
        file.write_text("[default]\naws_access_key_id=NEWKEY\naws_secret_access_key=s\n")

        await store.probe()
        await store.put(NAME, b"")


async def test_credentials_in_halves_are_named_and_may_be_completed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    async with S3Double(lambda *_: http(200)) as server, s3(server.url) as store:
        with pytest.raises(StoreError, match="could not be read: Partial credentials"):
            await store.probe()
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)

        await store.probe()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        pytest.param({"profile": "nobody"}, "profile .nobody. could not be found", id="profile"),
        pytest.param({"ca_bundle": "/no/ca.pem"}, "there is no file /no/ca.pem", id="CA bundle"),
        pytest.param({"region": "no region"}, "correct archive.s3.region", id="region"),
    ],
)
async def test_a_setting_that_cannot_be_is_refused_at_start(
    settings: dict[str, str], said: str
) -> None:
    with pytest.raises(StoreError, match=said):
        async with s3("http://127.0.0.1:1", **settings):
            pass


async def test_tls_is_checked_against_the_bundle(tls: Tls) -> None:
    async with S3Double(lambda *_: MISSING, tls.server) as server:
        async with s3(server.url) as store:
            with pytest.raises(StoreError, match=r"TLS with .* failed .*is archive.s3.ca_bundle"):
                await store.get(NAME)

        async with s3(server.url, ca_bundle=tls.ca_bundle) as store:
            assert await store.get(NAME) is None
