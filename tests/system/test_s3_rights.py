"""Each right that the archive needs is missed by `doctor`, and named where it is missing."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

import pytest

from agent.blocking import BlockingThread
from archive.checkup import checked
from archive.s3 import S3Store
from archive.settings import ArchiveSettings, S3Settings
from archive.store import StoreError
from benchmarks.moto import CREDENTIALS
from tests.support.program import environment, in_thread, resource_agent
from tests.support.s3_double import Answer, S3Double, http, s3_error
from tests.support.small_disk import small_disk

MIB = 1024 * 1024
BEGUN = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
OF_METHOD = {"GET": "s3:GetObject", "PUT": "s3:PutObject", "DELETE": "s3:DeleteObject"}
RIGHTS = {
    "s3:GetObject": "bucket/prefix/*",
    "s3:PutObject": "bucket/prefix/*",
    "s3:DeleteObject": "bucket/prefix/*",
    "s3:AbortMultipartUpload": "bucket/prefix/*",
    "s3:ListBucket": "bucket",
    "s3:ListBucketMultipartUploads": "bucket",
    "s3:GetLifecycleConfiguration": "bucket",
    "s3:PutLifecycleConfiguration": "bucket",
}


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


def right_of(method: str, path: str) -> str:
    """What a request needs."""
    query = parse_qs(urlsplit(path).query, keep_blank_values=True)
    if "lifecycle" in query:
        return f"s3:{method.capitalize()}LifecycleConfiguration"
    if "list-type" in query:
        return "s3:ListBucket"
    if "uploads" in query:
        return "s3:PutObject" if method == "POST" else "s3:ListBucketMultipartUploads"
    if "uploadId" in query and method == "DELETE":
        return "s3:AbortMultipartUpload"
    return OF_METHOD[method]


def server_without(*missing: str, said: str = "Access Denied") -> Callable[..., Answer]:
    """A bucket with no objects and no rules, for a user without these rights."""

    def answer(method: str, path: str, _headers: dict[str, str]) -> Answer:
        right = right_of(method, path)
        if right in missing:
            return s3_error(403, "AccessDenied", said)
        if right == "s3:GetLifecycleConfiguration":
            return s3_error(404, "NoSuchLifecycleConfiguration")
        return http(200, BEGUN if method == "POST" else b"<Empty/>")

    return answer


def settings_of(server: S3Double, lifecycle: Literal["on", "off"] = "off") -> ArchiveSettings:
    s3 = S3Settings(endpoint_url=server.url, attempts=1, lifecycle=lifecycle)
    return ArchiveSettings(store="s3://bucket/prefix", s3=s3)


@pytest.mark.parametrize("right", RIGHTS)
async def test_a_missing_right_is_named_alone(right: str, tmp_path: Path) -> None:
    async with S3Double(server_without(right)) as server:
        _, troubles = await checked(settings_of(server, "on"), tmp_path, BlockingThread)

    told = [trouble for trouble in troubles if "allow" in trouble]
    assert len(told) == 1
    assert f"allow {right} on {RIGHTS[right]}" in told[0]
    others = set(re.findall(r"s3:[A-Za-z]+", told[0])) - {right}
    assert others <= ({"s3:ListBucket"} if right == "s3:GetObject" else set())


async def test_each_of_several_missing_rights_has_a_line_of_its_own(tmp_path: Path) -> None:
    denied = server_without("s3:GetObject", "s3:DeleteObject", "s3:ListBucket")

    async with S3Double(denied) as server:
        _, troubles = await checked(settings_of(server), tmp_path, BlockingThread)

    for trouble, right in zip(
        troubles, ("s3:GetObject", "s3:ListBucket", "s3:DeleteObject"), strict=True
    ):
        assert f"allow {right} on" in trouble


async def test_what_a_server_says_itself_is_believed() -> None:
    said = (
        "User: arn:aws:iam::1:user/x is not authorized to perform: {} on resource: y because no "
        "identity-based policy allows it"
    )
    for right, text in (
        ("s3:ListBucket", "allow s3:ListBucket on bucket"),
        ("kms:Decrypt", "allow kms:Decrypt"),
    ):
        denied = server_without("s3:GetObject", said=said.format(right))
        async with S3Double(denied) as server:
            store = S3Store("bucket", "prefix/", settings_of(server).s3)
            with pytest.raises(StoreError) as caught:
                await store.get("ab" * 32)
            await store.close()

        assert str(caught.value).endswith(text)


async def test_a_bucket_that_was_deleted_is_one_line(tmp_path: Path) -> None:
    gone = s3_error(404, "NoSuchBucket")

    async with S3Double(lambda *_: gone) as server:
        _, (trouble,) = await checked(settings_of(server), tmp_path, BlockingThread)

    assert trouble.endswith("bucket bucket does not exist: create it, or correct archive.store")


async def test_a_server_that_calls_no_uploads_unknown_ones_lacks_no_right(tmp_path: Path) -> None:
    def answer(method: str, path: str, headers: dict[str, str]) -> Answer:
        if right_of(method, path) == "s3:ListBucketMultipartUploads":
            return s3_error(404, "NoSuchUpload")
        return server_without()(method, path, headers)

    async with S3Double(answer) as server:
        text, troubles = await checked(settings_of(server), tmp_path, BlockingThread)

    assert text.endswith("all rights are there")
    assert not troubles


async def test_where_all_rights_are_there_nothing_is_left_behind(tmp_path: Path) -> None:
    kept: dict[str, str] = {}

    def answer(method: str, path: str, headers: dict[str, str]) -> Answer:
        if right_of(method, path) == "s3:PutObject":
            kept[urlsplit(path).path] = method
        elif method == "DELETE":
            kept.pop(urlsplit(path).path)
        return server_without()(method, path, headers)

    async with S3Double(answer) as server:
        text, _ = await checked(settings_of(server), tmp_path, BlockingThread)

    assert text.endswith("all rights are there")
    assert not kept


@pytest.mark.parametrize("made", [True, False], ids=["in use", "not made yet"])
async def test_a_folder_without_room_is_told(tmp_path: Path, made: bool) -> None:
    with small_disk(tmp_path / "disk", mib=100) as disk:
        folder = disk.path / "archive"
        if made:
            folder.mkdir()
        disk.fill(but_bytes=8 * MIB)
        _, (nearly,) = await checked(ArchiveSettings(), folder, BlockingThread)
        disk.make_room()
        disk.fill()
        _, (full,) = await checked(ArchiveSettings(), folder, BlockingThread)
        disk.make_room()
        disk.fill(but_bytes=8 * MIB)
        _, none = await checked(ArchiveSettings(segment_bytes=MIB), folder, BlockingThread)

    assert "is full, or nearly: 8.0 MiB free, 64 MiB are needed; make room there" in nearly
    assert "is full" in full
    assert not none


async def test_doctor_shows_each_with_what_to_do(tmp_path: Path) -> None:
    async with S3Double(server_without("s3:ListBucket", "s3:DeleteObject")) as server:
        env = environment(
            archive__store="s3://bucket/prefix",
            archive__s3__endpoint_url=server.url,
            archive__s3__lifecycle="off",
        )

        done = await in_thread(
            lambda: resource_agent("doctor", "--state-dir", tmp_path, env={**env, **CREDENTIALS})
        )

    lines = [line for line in done.stdout.decode().splitlines() if "archive store" in line]
    assert done.returncode == 1
    assert [line.partition(":")[0] for line in lines] == ["FAIL archive store"] * 2
    assert "allow s3:ListBucket on bucket" in lines[0]
    assert "allow s3:DeleteObject on bucket/prefix/*" in lines[1]
