"""Digests what is uploaded in a thread: botocore would stop the event loop, 20 ms for 8 MiB."""

import asyncio
from typing import Any

from botocore.auth import AUTH_TYPE_MAPS, S3SigV4Auth

from archive.s3_body import Body

THREAD_BYTES = 64 * 1024
"""Of less, that takes no longer than handing it to a thread."""
_OURS = "s3v4-digested-before"
_DIGEST = "sha256 of the body"


class _Auth(S3SigV4Auth):  # type: ignore[misc]  # botocore has no types
    """Signature version 4 with the digest that is known already."""

    def payload(self, request: Any) -> str:  # noqa: ANN401 - botocore's request
        if _DIGEST in request.context and self._should_sha256_sign_payload(request):
            return str(request.context[_DIGEST])
        return str(super().payload(request))


AUTH_TYPE_MAPS[_OURS] = _Auth


def sign_in_threads(events: Any) -> None:  # noqa: ANN401 - the emitter of an S3 client
    """Have the client sign so, where it signs what it sends."""
    events.register_first("choose-signer.s3", _choose)
    events.register_first("before-sign.s3", _digest)


def _choose(
    signature_version: str,
    signing_name: str,
    context: Any,  # noqa: ANN401 - the request's
    **_: Any,  # noqa: ANN401 - the event's
) -> str | None:
    is_standard = signature_version in ("v4", "s3v4") and signing_name == "s3"
    return _OURS if is_standard and not context.get("unsigned_payload") else None


async def _digest(request: Any, **_: Any) -> None:  # noqa: ANN401 - the event's
    body = request.data
    is_long = isinstance(body, Body) and body.size_bytes >= THREAD_BYTES
    if is_long and _DIGEST not in request.context:
        request.context[_DIGEST] = await asyncio.to_thread(body.sha256)
