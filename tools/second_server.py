"""The suite once more, against another version of nats-server: `NATS_SERVER_SECOND=PATH`.

Without one it fails and says so; `NATS_SERVER_SECOND=skip` leaves it out.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agent.nats_server.binary import ServerNotFoundError, find_server, server_version  # noqa: E402

WHAT_TO_TYPE = (
    "Give another nats-server than the first with NATS_SERVER_SECOND=/path/to/nats-server\n"
    "(a release of github.com/nats-io/nats-server, say); NATS_SERVER_SECOND=skip leaves it out."
)


def main() -> int:
    """Run the suite with the second server."""
    named = os.environ.get("NATS_SERVER_SECOND", "")
    if named == "skip":
        print("second server version: left out, as asked", file=sys.stderr)
        return 0
    try:
        second = find_server(Path(named)) if named else None
        first = find_server()
    except ServerNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    if second is None or (first and server_version(first) == server_version(second)):
        print(f"second server version: there is none.\n{WHAT_TO_TYPE}", file=sys.stderr)
        return 1
    print(f"The suite with nats-server {server_version(second)}", file=sys.stderr)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-m", "not long and not gpu"]
    environment = {**os.environ, "NATS_SERVER_BIN": str(second)}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
