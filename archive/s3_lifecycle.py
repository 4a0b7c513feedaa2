"""Installs the lifecycle rules on a bucket and reads them back."""

from typing import Any

from archive.lifecycle import LifecycleReport, Rule, dangerous, merged
from archive.s3_multipart import Ask

_NONE_YET = "NoSuchLifecycleConfiguration"
_UNKNOWN = frozenset({"NotImplemented", "MethodNotAllowed", "UnsupportedOperation", "501", "405"})
_TAKEN_FOR_ANOTHER = frozenset({"BucketAlreadyExists", "BucketAlreadyOwnedByYou"})
"""Said to rules by a server that does not look at `?lifecycle` and would make the bucket."""
_REFUSED = frozenset({"AccessDenied", "403"})
NOT_ALLOWED = (
    "the bucket's lifecycle rules may not be {verb}: allow {right} on {bucket}, or set "
    "archive.s3.lifecycle to off; until then only the sweep removes what has expired"
)


async def install(ask: Ask, bucket: str, objects: str) -> LifecycleReport:
    """Have our rules on `bucket` for the prefix `objects`; rules of others stay as they are.

    Raises:
        StoreError: the server fails; ask again later.
    """
    existing: list[Rule] | LifecycleReport = await ask(lambda s3: _read(s3, bucket))
    if isinstance(existing, LifecycleReport):
        return existing
    wanted = merged(existing, objects)
    if wanted is not None:
        refused: LifecycleReport | None = await ask(lambda s3: _write(s3, bucket, wanted))
        if refused is not None:
            return refused
        existing = await ask(lambda s3: _read(s3, bucket))
        if isinstance(existing, LifecycleReport):
            return existing
        if merged(existing, objects) is not None:
            return LifecycleReport(
                "degraded", "the server did not keep the lifecycle rules as they were written"
            )
    strangers = dangerous(existing, objects)
    if strangers:
        return LifecycleReport(
            "degraded",
            f"rules of others also remove or move objects below {objects}: "
            f"{', '.join(strangers)}; limit them to another prefix",
        )
    return LifecycleReport("ok", f"rules by TTL class are on the bucket for {objects}")


async def _read(s3: Any, bucket: str) -> list[Rule] | LifecycleReport:  # noqa: ANN401 - botocore's
    try:
        answer = await s3.get_bucket_lifecycle_configuration(Bucket=bucket)
    except s3.exceptions.ClientError as error:
        if _code(error) == _NONE_YET:
            return []
        return _explained(error, bucket, "read", "s3:GetLifecycleConfiguration")
    return list(answer.get("Rules", ()))


async def _write(s3: Any, bucket: str, rules: list[Rule]) -> LifecycleReport | None:  # noqa: ANN401
    try:
        await s3.put_bucket_lifecycle_configuration(
            Bucket=bucket, LifecycleConfiguration={"Rules": rules}
        )
    except s3.exceptions.ClientError as error:
        return _explained(error, bucket, "written", "s3:PutLifecycleConfiguration")
    return None


def _explained(error: Exception, bucket: str, verb: str, right: str) -> LifecycleReport:
    code = _code(error)
    if code in _UNKNOWN | _TAKEN_FOR_ANOTHER:
        return LifecycleReport(
            "off",
            f"the server has no lifecycle rules ({code}): only the sweep removes what has expired",
        )
    if code in _REFUSED:
        text = NOT_ALLOWED.format(verb=verb, right=right, bucket=bucket)
        return LifecycleReport("degraded", text)
    raise error


def _code(error: Any) -> str:  # noqa: ANN401 - botocore's ClientError
    response = error.response
    return str(
        response.get("Error", {}).get("Code") or response["ResponseMetadata"]["HTTPStatusCode"]
    )
