"""Whether this archiver may answer at all, and for which namespace it is asked."""

from collections.abc import Callable

from schemas.protocols import Call, RequestError


def owned_namespace(call: Call, is_owner: Callable[[], bool], token: int = -1) -> str:
    """The namespace, which is that token of the subject.

    Raises:
        RequestError: 503, its index may be behind that of another archiver.
    """
    if not is_owner():
        raise RequestError(503, "this archiver does not own the store now; ask again")
    return call.subject.split(".")[token]
