"""Settings of the archive service."""

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

FOLDER = "folder"
_S3_URL = re.compile(
    r"s3://([A-Za-z0-9][A-Za-z0-9._-]{2,62})((?:/[A-Za-z0-9_=-][A-Za-z0-9._=-]*)*)/?"
)


class S3Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to reach S3. Credentials come from where every AWS tool looks, never from here."""

    endpoint_url: Annotated[
        str, Meta(description="`https://host:port` of a server that is not AWS; empty = AWS")
    ] = ""
    region: Annotated[
        str,
        Meta(description="region of the bucket; empty = AWS_DEFAULT_REGION or the profile's"),
    ] = ""
    profile: Annotated[
        str, Meta(description="profile in the AWS files; empty = AWS_PROFILE or `default`")
    ] = ""
    addressing: Annotated[
        Literal["auto", "path", "virtual"],
        Meta(
            description="bucket in the path or in the host name; auto = path with an endpoint_url"
        ),
    ] = "auto"
    ca_bundle: Annotated[
        str,
        Meta(description="file of certificates to trust; empty = AWS_CA_BUNDLE or the system's"),
    ] = ""
    lifecycle: Annotated[
        Literal["on", "off"],
        Meta(description="on: coarse rules that remove expired objects are kept on the bucket"),
    ] = "on"
    checksums: Annotated[
        Literal["when_required", "when_supported"],
        Meta(
            description="when_supported: uploads carry a CRC32 besides their signed SHA-256, which "
            "buckets with Object Lock ask for and some servers refuse"
        ),
    ] = "when_required"
    connections: Annotated[
        int, Meta(ge=1, le=256, description="requests at once; more wait their turn")
    ] = 16
    attempts: Annotated[
        int, Meta(ge=1, le=10, description="tries of one request before it counts as failed")
    ] = 4
    connect_timeout_seconds: Annotated[
        float, Meta(gt=0, le=60, description="longest wait for a connection, each try")
    ] = 3.0
    read_timeout_seconds: Annotated[
        float, Meta(gt=0, le=300, description="longest wait for the next bytes, each try")
    ] = 10.0
    deadline_seconds: Annotated[
        float, Meta(gt=0, le=600, description="longest time of one request, all tries together")
    ] = 20.0

    def __post_init__(self) -> None:
        if self.endpoint_url:
            _check_endpoint(self.endpoint_url)


def _check_endpoint(url: str) -> None:
    # The value is not in the texts: it may hold a password.
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_whole = False
    if not is_whole:
        raise ValueError("endpoint_url must be http://host:port or https://host:port")
    if "@" in parts.netloc:
        raise ValueError("endpoint_url must not hold a user or password: use the AWS variables")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("endpoint_url must end after the port: the bucket stands in archive.store")


class PriceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the store costs, in US dollars. The defaults are AWS's list prices of that month."""

    apply: Annotated[
        Literal["auto", "on", "off"],
        Meta(description="auto: where the store is S3 at AWS; off: no money is shown"),
    ] = "auto"
    source: Annotated[str, Meta(description="whose prices")] = "AWS us-east-1, S3 Standard"
    as_of: Annotated[str, Meta(description="when they were looked up")] = "2026-03"
    gib_month_usd: Annotated[float, Meta(ge=0, description="1 GiB kept for 730 hours")] = 0.023
    write_usd_per_1000: Annotated[
        float, Meta(ge=0, description="1,000 PUT, COPY and POST requests")
    ] = 0.005
    list_usd_per_1000: Annotated[float, Meta(ge=0, description="1,000 LIST requests")] = 0.005
    read_usd_per_1000: Annotated[float, Meta(ge=0, description="1,000 GET and HEAD requests")] = (
        0.0004
    )


class ArchiveSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where evicted entries are kept, and how."""

    store: Annotated[
        str,
        Meta(description="`folder`, or `s3://bucket/prefix`; a prefix belongs to one installation"),
    ] = FOLDER
    folder: Annotated[
        str, Meta(description="folder of the archive; empty = `archive` in the state folder")
    ] = ""
    s3: Annotated[S3Settings, Meta(description="S3")] = S3Settings()
    prices: Annotated[PriceSettings, Meta(description="prices of the store")] = PriceSettings()
    in_flight: Annotated[
        int,
        Meta(
            ge=1, le=8192, description="evictions taken and not durable yet; each holds its value"
        ),
    ] = 8192
    in_flight_bytes: Annotated[
        int,
        Meta(
            ge=1024 * 1024,
            description="of their values; with twice a segment one is filled while one is written",
        ),
    ] = 64 * 1024 * 1024
    segment_bytes: Annotated[
        int,
        Meta(
            ge=64 * 1024,
            le=64 * 1024 * 1024,
            description="an object is written when the entries packed into it have so many bytes",
        ),
    ] = 16 * 1024 * 1024
    segment_seconds: Annotated[
        float,
        Meta(
            gt=0,
            le=10,
            description="or when the first of them was packed so long ago: an eviction is durable, "
            "and acknowledged, that much later at most",
        ),
    ] = 1.0
    dead_ratio: Annotated[
        float,
        Meta(
            gt=0,
            lt=1,
            description="share of an object that nobody needs any more above which the rest is "
            "written anew, into another one",
        ),
    ] = 0.5
    handover_max_bytes: Annotated[
        int,
        Meta(
            ge=1024 * 1024,
            description="RAM for large values that are being handed back to the cache; more of "
            "them wait, and a value above it is never handed back",
        ),
    ] = 256 * 1024 * 1024
    restore_gate: Annotated[
        Literal["on", "off"],
        Meta(
            description="on: a value whose `Fleet-Cost-Seconds` is less than fetching it would "
            "take, by what fetches took of late, is not given back: its asker computes it anew"
        ),
    ] = "on"
    zstd_level: Annotated[int, Meta(ge=1, le=19, description="zstd compression level")] = 3
    min_ratio: Annotated[
        float,
        Meta(ge=1, description="original by compressed size below which a value is stored raw"),
    ] = 1.1
    budget_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="stored bytes that the values of each namespace may take; above it the "
            "least worthy are dropped, however long they were to live; 0 = no limit",
        ),
    ] = 0
    sweep_interval_seconds: Annotated[
        float, Meta(gt=0, description="seconds between removals of expired and cleared objects")
    ] = 60.0
    tombstone_keep_seconds: Annotated[
        float,
        Meta(
            gt=0,
            description="seconds a tombstone is kept; longer than an eviction can wait in its "
            "stream, or a deleted value could come back",
        ),
    ] = 8 * 86400.0
    standby_poll_seconds: Annotated[
        float, Meta(gt=0, le=3, description="seconds between tries to take over the index")
    ] = 2.0
    retry_seconds: Annotated[
        float, Meta(gt=0, description="pause after the first failure of the store; doubles")
    ] = 1.0
    retry_max_seconds: Annotated[
        float, Meta(gt=0, description="longest pause after a failure of the store")
    ] = 30.0
    probe_interval_seconds: Annotated[
        float,
        Meta(
            gt=0, description="between trial writes that tell whether the store works: for health"
        ),
    ] = 5.0
    metrics_interval_seconds: Annotated[
        float, Meta(gt=0, le=3600, description="between two ArchiveMetrics of a namespace")
    ] = 5.0
    drain_seconds: Annotated[
        float, Meta(gt=0, description="longest wait at stop for evictions in flight")
    ] = 5.0

    @property
    def bucket_and_prefix(self) -> tuple[str, str] | None:
        """Bucket and prefix in S3, the prefix empty or with a slash at its end; None = a folder."""
        found = _S3_URL.fullmatch(self.store)
        return (found[1], f"{found[2]}/".lstrip("/")) if found else None

    @property
    def shows_money(self) -> bool:
        """Whether the prices are those of this store."""
        at_aws = self.bucket_and_prefix is not None and not self.s3.endpoint_url
        return self.prices.apply == "on" or (self.prices.apply == "auto" and at_aws)

    def __post_init__(self) -> None:
        if self.store != FOLDER and self.bucket_and_prefix is None:
            raise ValueError(
                "archive.store must be `folder` or `s3://bucket/prefix` (bucket: 3 to 63 letters, "
                "digits, dots, hyphens; prefix: none, or names of letters, digits and . _ = -)"
            )
        if self.retry_max_seconds < self.retry_seconds:
            raise ValueError("retry_max_seconds must not be shorter than retry_seconds")
