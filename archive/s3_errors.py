"""What a server says of a request that it refuses: its code, and words for people."""

import contextlib
import time
from email.utils import parsedate_to_datetime
from typing import Any

from botocore.exceptions import ClientError

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
