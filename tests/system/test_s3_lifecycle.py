"""Lifecycle rules on a bucket: moto's for what is kept, an HTTP double for what is refused."""

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from agent.bus import Bus
from archive.lifecycle import wanted_rules
from archive.s3 import S3Store
from archive.settings import S3Settings
from archive.store import StoreError
from benchmarks.moto import CREDENTIALS, MotoServer
from tests.support.archive_service import archiving, until
from tests.support.s3_double import Answer, S3Double, http, s3_error

NO_RULES = s3_error(404, "NoSuchLifecycleConfiguration")
THEIRS = {
    "ID": "logs",
    "Status": "Enabled",
    "Filter": {"Prefix": "logs/"},
    "Expiration": {"Days": 9},
}


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


class Bucket:
    """A bucket as another program sees it."""

    def __init__(self, moto: MotoServer) -> None:
        self.name = moto.make_bucket(secrets.token_hex(8))
        self._s3: Any = boto3.client("s3", endpoint_url=moto.url)

    @property
    def rules(self) -> list[dict[str, Any]]:
        answer = self._s3.get_bucket_lifecycle_configuration(Bucket=self.name)
        return list(answer["Rules"])

    def set_rules(self, rules: list[dict[str, Any]]) -> None:
        self._s3.put_bucket_lifecycle_configuration(
            Bucket=self.name, LifecycleConfiguration={"Rules": rules}
        )

    def close(self) -> None:
        self._s3.close()


@pytest.fixture
def bucket(moto: MotoServer) -> Iterator[Bucket]:
    made = Bucket(moto)
    yield made
    made.close()


@pytest.fixture
async def store(moto: MotoServer, bucket: Bucket) -> AsyncIterator[S3Store]:
    opened = S3Store(bucket.name, "one/", S3Settings(endpoint_url=moto.url))
    await opened.open()
    yield opened
    await opened.close()


async def test_rules_by_class_are_put_beside_those_of_others(
    store: S3Store, bucket: Bucket
) -> None:
    bucket.set_rules([THEIRS])

    report = await store.install_lifecycle()

    ours = {rule["ID"]: rule["Filter"] for rule in wanted_rules("one/objects/")}
    assert report.state == "ok"
    assert {rule["ID"]: rule["Filter"] for rule in bucket.rules} == {
        "logs": THEIRS["Filter"],
        **ours,
    }


async def test_two_installations_share_a_bucket(
    store: S3Store, bucket: Bucket, moto: MotoServer
) -> None:
    other = S3Store(bucket.name, "two/", S3Settings(endpoint_url=moto.url))

    await store.install_lifecycle()
    await other.install_lifecycle()
    again = await store.install_lifecycle()
    await other.close()

    assert again.state == "ok"
    assert len(bucket.rules) == 2 * len(wanted_rules(""))


async def test_a_strangers_rule_that_takes_our_objects_is_named(
    store: S3Store, bucket: Bucket
) -> None:
    bucket.set_rules([{**THEIRS, "ID": "clean all", "Filter": {"Prefix": ""}}])

    report = await store.install_lifecycle()

    assert report.state == "degraded"
    assert "below one/objects/: clean all; limit them to another prefix" in report.text
    assert "clean all" in [rule["ID"] for rule in bucket.rules]


async def installed(answers: dict[str, Answer], **settings: Any) -> tuple[str, str, list[str]]:
    """State and text of the report, and what was asked."""
    async with S3Double(lambda method, *_: answers[method]) as server:
        store = S3Store(
            "bucket", "one/", S3Settings(endpoint_url=server.url, attempts=1, **settings)
        )
        await store.open()
        try:
            report = await store.install_lifecycle()
        finally:
            await store.close()
    return report.state, report.text, [request.split(" ")[0] for request in server.requests]


@pytest.mark.parametrize(
    ("answers", "state", "said"),
    [
        pytest.param(
            {"GET": s3_error(501, "NotImplemented")},
            "off",
            "has no lifecycle rules (NotImplemented)",
            id="server has none",
        ),
        pytest.param(
            {"GET": NO_RULES, "PUT": s3_error(405, "MethodNotAllowed")},
            "off",
            "has no lifecycle rules (MethodNotAllowed)",
            id="server takes none",
        ),
        pytest.param(
            {"GET": NO_RULES, "PUT": s3_error(409, "BucketAlreadyExists")},
            "off",
            "has no lifecycle rules (BucketAlreadyExists)",
            id="server takes rules for a new bucket",
        ),
        pytest.param(
            {"GET": s3_error(403, "AccessDenied")},
            "degraded",
            "may not be read: allow s3:GetLifecycleConfiguration on bucket",
            id="may not read",
        ),
        pytest.param(
            {"GET": NO_RULES, "PUT": s3_error(403, "AccessDenied")},
            "degraded",
            "may not be written: allow s3:PutLifecycleConfiguration on bucket",
            id="may not write",
        ),
        pytest.param(
            {"GET": NO_RULES, "PUT": http(200)},
            "degraded",
            "did not keep the lifecycle rules",
            id="server forgets them",
        ),
    ],
)
async def test_each_refusal_is_told_apart(
    answers: dict[str, Answer], state: str, said: str
) -> None:
    found = await installed(answers)

    assert found[0] == state
    assert said in found[1]


async def test_a_server_that_fails_is_a_failure_and_not_a_server_without_rules() -> None:
    with pytest.raises(StoreError, match="the server failed"):
        await installed({"GET": s3_error(500, "InternalError")})


async def test_rules_that_are_not_wanted_are_not_asked_for() -> None:
    state, text, requests = await installed({}, lifecycle="off")

    assert (state, requests) == ("off", [])
    assert "archive.s3.lifecycle is off" in text


async def test_the_owner_of_the_store_installs_them_and_says_so_in_health(
    bus: Bus, store: S3Store, bucket: Bucket
) -> None:
    async with archiving(bus, store) as service:
        await until(lambda: "lifecycle" in [one.name for one in service.components()])
        (component,) = [one for one in service.components() if one.name == "lifecycle"]

    assert component.state == "ok"
    assert "rules by TTL class are on the bucket for one/objects/" in component.text
    assert len(bucket.rules) == len(wanted_rules(""))


async def test_a_folder_has_no_lifecycle(bus: Bus, tmp_path: Path) -> None:
    async with archiving(bus, tmp_path / "archive") as service:
        await until(lambda: len(service.components()) >= 3)
        names = [component.name for component in service.components()]

    assert names == ["lease", "store", "backlog"]
