"""What a server says of a request that it refuses: its code, and words for people."""

import contextlib
import time
from collections.abc import Awaitable
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from botocore.exceptions import ClientError

T = TypeVar("T")

OF_ONE_OBJECT = frozenset(
    {
        "403",
        "AccessDenied",
        "InvalidObjectState",
        "KMS.DisabledException",
        "KMS.KMSInvalidStateException",
        "KMS.NotFoundException",
    }
)
"""May be about one object: a bucket policy's, one in a cold storage class, one of another key."""


def code(error: ClientError) -> str:
    """S3's code, or the HTTP status where there is none."""
    known = error.response.get("Error", {}).get("Code")
    return str(known or _response(error).get("HTTPStatusCode"))


async def unless_no_upload(call: Awaitable[T]) -> T | None:
    """What `call` returns; None: there is no such upload, or, to who lists them, none at all."""
    try:
        return await call
    except ClientError as error:
        # Of a list, too: by servers such as rclone, where none was begun since they started.
        if code(error) == "NoSuchUpload":
            return None
        raise


def _response(error: ClientError) -> dict[str, Any]:
    return dict(error.response.get("ResponseMetadata", {}))


def detail(error: ClientError) -> str:
    """The code and what the server says beside it; for a wrong clock or region, how wrong."""
    name = code(error)
    about = error.response.get("Error", {})
    headers = _response(error).get("HTTPHeaders", {})
    if name in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"):
        return name  # the rest repeats the key and the signed text
    if name in ("RequestTimeTooSkewed", "RequestExpired"):
        with contextlib.suppress(KeyError, ValueError):
            ahead = time.time() - parsedate_to_datetime(headers["date"]).timestamp()
            return f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
    region = about.get("Region") or headers.get("x-amz-bucket-region")
    if region:
        return f"it is in {region}"
    return ": ".join(filter(None, (name, about.get("Message"))))
