"""How the settings are said to the client of S3."""

from pathlib import Path

from aiobotocore.config import AioConfig

from archive.settings import S3Settings
from archive.store import StoreError


def config(settings: S3Settings) -> AioConfig:
    """The client's configuration.

    Raises:
        StoreError: a setting cannot be used.
    """
    if settings.ca_bundle and not Path(settings.ca_bundle).is_file():
        raise StoreError(f"archive.s3.ca_bundle: there is no file {settings.ca_bundle}")
    addressing = settings.addressing
    if addressing == "auto" and settings.endpoint_url:
        addressing = "path"
    return AioConfig(
        retries={"mode": "adaptive", "total_max_attempts": settings.attempts},
        max_pool_connections=settings.connections,
        connect_timeout=settings.connect_timeout_seconds,
        read_timeout=settings.read_timeout_seconds,
        tcp_keepalive=True,
        request_checksum_calculation=settings.checksums,
        response_checksum_validation="when_required",
        s3={"addressing_style": addressing},
    )
