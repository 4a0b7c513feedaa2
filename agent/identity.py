"""Who this process is: machine, state folder, boot."""

import getpass
import hashlib
import os
import platform
import re
import secrets
import uuid
from pathlib import Path

import msgspec

_FOLDER = re.compile(r"[0-9a-f]{16}")
MACHINE_IDS = ("/etc/machine-id", "/var/lib/dbus/machine-id")


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """`machine` names the host to people; `folder` is random and stays with the state folder."""

    machine: str
    folder: str
    boot: str
    pid: int


def user_name() -> str:
    """This machine's user; a number where it has no name, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def machine_name() -> str:
    """Host name and a digest of the machine's own id: `gpu-17 (machine 3f9a1c02)`."""
    raw = ""
    # A container has no machine id, and a new network address at each start, but its host's boot.
    for path in (*MACHINE_IDS, "/proc/sys/kernel/random/boot_id"):
        try:
            raw = Path(path).read_text().strip()
        except OSError:
            continue
        if raw:
            break
    digest = hashlib.sha256((raw or str(uuid.getnode())).encode()).hexdigest()[:8]
    return f"{platform.node() or 'unnamed'} (machine {digest})"


def load_identity(state_dir: Path) -> Identity:
    """The identity of this process on `state_dir`; the folder's id is written on first use.

    Raises:
        OSError: the folder cannot be read or written, or its file `identity` is not one.
    """
    path = state_dir / "identity"
    try:
        folder = path.read_text(errors="replace").strip()
    except FileNotFoundError:
        folder = _write_first(path, secrets.token_hex(8))
    if not _FOLDER.fullmatch(folder):
        raise OSError(f"{path} is damaged: remove it, and this folder gets a new identity")
    return Identity(
        machine=machine_name(), folder=folder, boot=secrets.token_hex(4), pid=os.getpid()
    )


def _write_first(path: Path, folder: str) -> str:
    """Write the folder's id, unless another process was faster; returns what is there."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f"identity.{secrets.token_hex(4)}")
    fresh.write_text(folder + "\n")
    try:
        os.link(fresh, path)
    except FileExistsError:
        return path.read_text().strip()
    finally:
        fresh.unlink()
    return folder
