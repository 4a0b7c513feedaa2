"""Connecting to a server, and finding out whether it knows who we are."""

import secrets
from urllib.parse import urlsplit

from agent.bus.bus import Bus
from agent.bus.connection import START_DEADLINE_SECONDS, Login
from agent.bus.errors import LoginRefusedError
from agent.bus.names import Names
from schemas.units import token


async def is_authenticated(bus: Bus) -> bool:
    """Whether the server knows who we are: it lets nobody in with our name and another secret.

    What it says of itself does not tell: one that lets guests in asks for no login, and one
    without users takes any.

    Raises:
        BusError: the server does not answer.
    """
    if bus.user is None:
        return False
    parts = urlsplit(bus.url)
    wrong = secrets.token_hex(16)
    login = f"{parts.username}:{wrong}" if parts.password is not None else wrong
    host = parts.netloc.rpartition("@")[2]
    try:
        stranger = await connect(
            parts._replace(netloc=f"{login}@{host}").geturl(), name="authentication-check"
        )
    except LoginRefusedError:
        return True
    await stranger.close()
    return False


async def connect(
    url: str,
    *,
    name: str,
    root: str = "fleet.v1",
    deadline_seconds: float = START_DEADLINE_SECONDS,
) -> Bus:
    """Connect to `url` as `name`.

    Raises:
        BusError: not within the deadline, or the login was refused; the text names URL and user.
    """
    # Who logs in gets an inbox that nobody else may hear. A guest may hear only the common one.
    user = Login.of(url).user
    inbox = f"_INBOX_{token(user)}" if user else "_INBOX"
    bus = Bus(url, name, Names(root), inbox)
    await bus.open(deadline_seconds)
    return bus
