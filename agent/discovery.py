"""Finds the bus: option, NATS_URL, the running `up`, 127.0.0.1:4222; and its password."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, urlsplit

from agent.state_folder import is_free

DEFAULT_URL = "nats://127.0.0.1:4222"


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """An address and how it was found, for people to read; `guessed`: nothing said that one."""

    url: str
    how: str
    guessed: bool = False


def find_bus(option: str | None, environ: Mapping[str, str], state_dir: Path) -> Found:
    """The address to use; nothing is connected."""
    if option:
        return Found(option, "option --nats-url")
    running = read_up(state_dir)
    if environ.get("NATS_URL"):
        url = environ["NATS_URL"]
        if running is not None and url.removeprefix("nats://") == running.rpartition("@")[2]:
            # The address that `up` shows to everybody; whoever can read its file has the password.
            return Found(
                running, f"environment NATS_URL, password of the running `up` on {state_dir}"
            )
        return Found(url, "environment NATS_URL")
    if running is not None:
        return Found(running, f"the running `up` on {state_dir}")
    return Found(DEFAULT_URL, "default address; no `up` runs on this state folder", guessed=True)


def read_up(state_dir: Path) -> str | None:
    """The address of the `up` that runs on `state_dir`, if one does.

    One that was killed leaves its file behind, and its process id may be another program's by now.
    """
    try:
        up = json.loads((state_dir / "up.json").read_text())
        os.kill(int(up["pid"]), 0)
        if is_free(state_dir / "lock"):
            return None
        return str(up["nats_url"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def with_password(url: str, password_file: str) -> str:
    """`url`, where it names a user without a password, with the one in the file; "" = no file.

    The file holds nothing but the password; a newline at its end does not count.

    Raises:
        ValueError: the file has no password, or the address no user.
    """
    parts = urlsplit(url)
    if not password_file or parts.password is not None:
        return url
    if not parts.username:
        raise ValueError("the server's address has no user; write nats://user@host:4222")
    try:
        password = Path(password_file).expanduser().read_text().rstrip("\r\n")
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ValueError("is not text") from None
    if not password:
        raise ValueError("is empty")
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{parts.username}:{quote(password, safe='')}@{host}").geturl()
