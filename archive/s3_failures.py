"""What a failure of S3 means, and what an operator can do about it. Pure: names in, words out."""

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """`text` may name `{bucket}`, `{endpoint}`, `{deadline}`, `{detail}`, `{operation}`, `{right}`.

    `{other_scheme}`: whether the endpoint means the other of http and https; empty at AWS.
    `credentials`: new ones may be there by now, so read them again before the next try.
    `forbidden`: a right is missing; others may be there.
    """

    text: str
    credentials: bool = False
    forbidden: bool = False


_NO_CREDENTIALS = Failure(
    "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
    "AWS_SHARED_CREDENTIALS_FILE, or give this machine a role",
    credentials=True,
)
_UNUSABLE_CREDENTIALS = Failure(
    "the credentials could not be read: {detail}; check the AWS files, variables and role",
    credentials=True,
)
_WRONG_CREDENTIALS = Failure(
    "the server does not accept the credentials ({detail}): check access key and secret",
    credentials=True,
)
_EXPIRED = Failure("the credentials have expired: renew them", credentials=True)
_WRONG_REGION = Failure(
    "bucket {bucket} is in another region ({detail}): set archive.s3.region to that one"
)
_THROTTLED = Failure(
    "the server asks to slow down ({detail}): it is overloaded, or the account's request rate is "
    "used up; lower archive.s3.connections"
)
_FULL = Failure("the server has no room left ({detail}): free some, or raise the quota")
_SKEW = Failure("the clock of this machine is wrong ({detail}): synchronise it (NTP)")
_ENCRYPTION = Failure("the key that encrypts the bucket cannot be used: {detail}")
_NO_ANSWER = Failure(
    "no answer within {deadline} s: the server is slow or overloaded, or a firewall drops packets"
)
_UNREACHABLE = Failure(
    "{endpoint} cannot be reached: is the server running, and the name, port and network right?"
)
_NO_CONNECTION = dataclasses.replace(_UNREACHABLE, text=f"{_UNREACHABLE.text}{{other_scheme}}")
_CUT = Failure(
    "the connection broke off: is a proxy, or the server itself, being restarted?{other_scheme}"
)
_FORBIDDEN = Failure("permission denied ({detail}): allow {right}", forbidden=True)
_SERVER_FAULT = Failure("the server failed ({detail}): its log says why")
_CHANGED = Failure(
    "the server did not get what was sent ({detail}): a proxy or the network changed it"
)
_CHECKSUM = Failure(
    "the server refuses the request ({detail}): where it asks for a checksum, as buckets with "
    "Object Lock do, set archive.s3.checksums to when_supported; where it knows none, to "
    "when_required"
)
_NOT_S3 = Failure(
    "what answers is not S3 ({detail}): is {endpoint} the S3 port and not a web console, and is "
    "the proxy before it well?{other_scheme}"
)

_NOT_IMPLEMENTED = Failure(
    "the server does not know what was asked of it ({operation}: {detail}): it needs a newer "
    "version of that server, or another one; what the archive asks for is tested by "
    "tests/system/test_store_conformance.py"
)
_PLAIN_TEXT = Failure(
    "{endpoint} does not speak TLS: where that server has no certificate, write http:// in "
    "archive.s3.endpoint_url, else correct its port"
)
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "packet length too long", "record layer failure")
"""What OpenSSL calls an answer that is not TLS; its error has no other code."""

_BY_NAME = {
    # Codes of S3 and of servers like it.
    "NoSuchBucket": Failure("bucket {bucket} does not exist: create it, or correct archive.store"),
    "AccessDenied": _FORBIDDEN,
    "403": _FORBIDDEN,
    "AllAccessDisabled": Failure("the bucket is disabled by its provider: {detail}"),
    "AccountProblem": Failure("the account has a problem: {detail}"),
    "InvalidAccessKeyId": _WRONG_CREDENTIALS,
    "SignatureDoesNotMatch": _WRONG_CREDENTIALS,
    "InvalidToken": _WRONG_CREDENTIALS,
    "ExpiredToken": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "RequestTimeTooSkewed": _SKEW,
    "RequestExpired": _SKEW,
    "PermanentRedirect": _WRONG_REGION,
    "TemporaryRedirect": _WRONG_REGION,
    "AuthorizationHeaderMalformed": _WRONG_REGION,
    "IllegalLocationConstraintException": _WRONG_REGION,
    "301": _WRONG_REGION,
    "307": _WRONG_REGION,
    "SlowDown": _THROTTLED,
    "ServiceUnavailable": _THROTTLED,
    "Throttling": _THROTTLED,
    "ThrottlingException": _THROTTLED,
    "RequestLimitExceeded": _THROTTLED,
    "TooManyRequests": _THROTTLED,
    "429": _THROTTLED,
    "503": _THROTTLED,
    "XAmzContentSHA256Mismatch": _CHANGED,
    "BadDigest": _CHANGED,
    "InvalidRequest": _CHECKSUM,
    "InvalidDigest": _CHECKSUM,
    "QuotaExceeded": _FULL,
    "InsufficientStorage": _FULL,
    "XMinioStorageFull": _FULL,
    "507": _FULL,
    "NotImplemented": _NOT_IMPLEMENTED,
    "501": _NOT_IMPLEMENTED,
    "InternalError": _SERVER_FAULT,
    # A bare status: S3 itself would have sent a code.
    "400": _NOT_S3,
    "404": _NOT_S3,
    "405": _NOT_S3,
    "500": _NOT_S3,
    "502": _NOT_S3,
    "504": _NOT_S3,
    "KMS.DisabledException": _ENCRYPTION,
    "KMS.NotFoundException": _ENCRYPTION,
    "KMS.KMSInvalidStateException": _ENCRYPTION,
    # Exceptions of botocore and aiohttp.
    "NoCredentialsError": _NO_CREDENTIALS,
    "PartialCredentialsError": _UNUSABLE_CREDENTIALS,
    "CredentialRetrievalError": _UNUSABLE_CREDENTIALS,
    "MetadataRetrievalError": _UNUSABLE_CREDENTIALS,
    "TokenRetrievalError": _UNUSABLE_CREDENTIALS,
    "SSOError": _UNUSABLE_CREDENTIALS,
    "ProfileNotFound": Failure("{detail}: correct archive.s3.profile or the AWS files"),
    "ConfigParseError": Failure("{detail}: correct that file"),
    "NoRegionError": Failure("no region is known: set archive.s3.region"),
    "InvalidRegionError": Failure("{detail}: correct archive.s3.region"),
    "SSLError": Failure(
        "TLS with {endpoint} failed ({detail}): is archive.s3.ca_bundle the authority of that "
        "server's certificate, and the clock right?"
    ),
    "ProxyConnectionError": Failure("the HTTP proxy cannot be reached: {detail}"),
    "TimeoutError": _NO_ANSWER,
    "ReadTimeoutError": _NO_ANSWER,
    "ConnectTimeoutError": _NO_CONNECTION,
    "EndpointConnectionError": _UNREACHABLE,
    "ConnectionClosedError": _CUT,
    "ResponseStreamingError": _CUT,
    "IncompleteReadError": _CUT,
    "ClientPayloadError": _CUT,
    "ResponseParserError": _NOT_S3,
}


def failure(names: Iterable[str], said: str = "") -> Failure:
    """What the first known of `names` means: an S3 code, an HTTP status, or an exception's class.

    Of TLS what the library `said` tells more than its class. Unknown ones are shown as they came.
    """
    if any(words.lower() in said.lower() for words in _NO_TLS):
        return _PLAIN_TEXT
    return next((_BY_NAME[name] for name in names if name in _BY_NAME), Failure("{detail}"))


def other_scheme(endpoint: str) -> str:
    """The question whether `endpoint` (a URL, or AWS) should begin with the other scheme."""
    if endpoint.startswith("http://"):
        return " Does it want https:// in archive.s3.endpoint_url?"
    if endpoint.startswith("https://"):
        return " Does it want http:// in archive.s3.endpoint_url?"
    return ""
