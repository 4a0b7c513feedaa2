"""Where the archive may lie."""

from typing import Any

import msgspec
import pytest

from archive.settings import ArchiveSettings


@pytest.mark.parametrize(
    ("store", "place"),
    [
        pytest.param("folder", None, id="folder"),
        pytest.param("s3://bucket", ("bucket", ""), id="whole bucket"),
        pytest.param("s3://bucket/", ("bucket", ""), id="slash"),
        pytest.param("s3://my.bucket-1/a/b=c", ("my.bucket-1", "a/b=c/"), id="prefix"),
        pytest.param("s3://bucket/a/", ("bucket", "a/"), id="prefix and slash"),
    ],
)
def test_the_store_is_a_folder_or_a_prefix_in_a_bucket(
    store: str, place: tuple[str, str] | None
) -> None:
    assert ArchiveSettings(store=store).bucket_and_prefix == place


@pytest.mark.parametrize(
    "store", ["", "s3", "s3:/bucket", "s3://", "s3://b", "s3://bucket//a", "s3://bucket/../a", "x"]
)
def test_another_store_is_refused_with_what_it_can_be(store: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="must be `folder` or `s3://bucket/prefix`"):
        msgspec.convert({"store": store}, ArchiveSettings)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        pytest.param("s3.example:8333", "must be http://host:port or https", id="no scheme"),
        pytest.param("ftp://host", "must be http://host:port or https", id="other scheme"),
        pytest.param("http://:9000", "must be http://host:port or https", id="no host"),
        pytest.param("http://host:99999", "must be http://host:port or https", id="port"),
        pytest.param("http://me:hush@host", "must not hold a user or password", id="password"),
        pytest.param("http://host/bucket", "must end after the port", id="bucket in it"),
    ],
)
def test_an_endpoint_that_cannot_be_is_refused_without_being_repeated(url: str, said: str) -> None:
    settings: dict[str, Any] = {"s3": {"endpoint_url": url}}

    with pytest.raises(msgspec.ValidationError, match=said) as refused:
        msgspec.convert(settings, ArchiveSettings)

    assert "hush" not in str(refused.value)
