"""Which right of S3 an operation needs, and whether this user has each one the archive needs."""

import re
import secrets
from collections.abc import AsyncIterator
from typing import Any

from archive.s3_errors import unless_no_upload
from archive.s3_multipart import Ask
from archive.store import StoreError

_OF_OBJECTS = {
    "GetObject": ("s3:GetObject",),
    "PutObject": ("s3:PutObject",),
    "CreateMultipartUpload": ("s3:PutObject",),
    "UploadPart": ("s3:PutObject",),
    "CompleteMultipartUpload": ("s3:PutObject",),
    "CopyObject": ("s3:GetObject", "s3:PutObject"),
    "DeleteObject": ("s3:DeleteObject",),
    "AbortMultipartUpload": ("s3:AbortMultipartUpload",),
}
_OF_THE_BUCKET = {
    "ListObjectsV2": "s3:ListBucket",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "GetBucketLifecycleConfiguration": "s3:GetLifecycleConfiguration",
    "PutBucketLifecycleConfiguration": "s3:PutLifecycleConfiguration",
}
_NAMED = re.compile(r"not authorized to perform:? ([a-z0-9]+:[A-Za-z0-9]+)")


class ForbiddenError(StoreError):
    """This user lacks a right; the text names it."""


def needed_right(operation: str, said: str, bucket: str, prefix: str) -> str:
    """The right that the refused `operation` (botocore's name) needs, and on what.

    AWS names it itself in what it `said`: also where that is another one than one would think,
    as the listing's where a missing object is read, or an encryption key's.
    """
    objects = f"{bucket}/{prefix}*"
    named = _NAMED.search(said)
    if named is not None:
        right = named[1]
        if right in _OF_THE_BUCKET.values():
            return f"{right} on {bucket}"
        return f"{right} on {objects}" if right.startswith("s3:") else right
    if operation in _OF_THE_BUCKET:
        return f"{_OF_THE_BUCKET[operation]} on {bucket}"
    rights = _OF_OBJECTS.get(operation)
    if rights is None:
        return operation or "what it asked for"
    needed = f"{' and '.join(rights)} on {objects}"
    if operation == "GetObject":
        # Servers hide from who may not list whether an object is there.
        return f"{needed}, and s3:ListBucket on {bucket}: without that a missing object is refused"
    return needed


async def refusals(ask: Ask, bucket: str, prefix: str) -> AsyncIterator[StoreError]:
    """Try each right once, on objects of our own; what was refused or failed.

    Nothing is left behind, unless what would remove it is refused. What fails for another reason
    than rights fails for all: then that is the last.
    """
    key = f"{prefix}probe.{secrets.token_hex(8)}"
    one = {"Bucket": bucket, "Key": key}
    trials: dict[str, dict[str, Any]] = {
        "put_object": {**one, "Body": b"probe"},
        "get_object": one,
        "list_objects_v2": {"Bucket": bucket, "Prefix": prefix, "MaxKeys": 1},
        "delete_object": one,
        "list_multipart_uploads": {"Bucket": bucket, "Prefix": prefix, "MaxUploads": 1},
    }
    written = False
    for operation, arguments in trials.items():
        if operation in ("get_object", "delete_object") and not written:
            continue  # of what is not there nothing could be told
        try:
            await ask(lambda s3, o=operation, a=arguments: unless_no_upload(getattr(s3, o)(**a)))  # type: ignore[misc]
        except ForbiddenError as error:
            yield error
        except StoreError as error:
            yield error
            return
        else:
            written = written or operation == "put_object"
    if not written:
        return
    try:
        begun = await ask(lambda s3: s3.create_multipart_upload(**one))
        await ask(lambda s3: s3.abort_multipart_upload(UploadId=begun["UploadId"], **one))
    except StoreError as error:
        yield error
