"""What leaves this package when the connection fails; nats-py's own errors never do."""

import contextlib
from collections.abc import Iterator

import nats.errors

from agent.human import reason


class BusError(RuntimeError):
    """No usable connection: wrong URL, wrong password, no JetStream. The text says what to do."""


class LoginRefusedError(BusError):
    """The server does not take this user with this password, or this token."""


@contextlib.contextmanager
def raised_as(kind: type[Exception], what: str) -> Iterator[None]:
    """Turn errors of nats-py and of the socket into `kind`, `what` in front of their text."""
    try:
        yield
    except (nats.errors.Error, OSError) as error:
        raise kind(f"{what}: {reason(error)}") from error
