"""The guard of a private nats-server: it lets no server outlive the process that wanted it.

Run as `python -I -S guard.py BINARY CONFIG LOCK_FD`, in a session of its own. It
starts the server as its child, prints one line `{"pid": ...}`, and then waits for one of
two things. End of file on stdin means that the parent closed the pipe or died, in
whatever way: the server is stopped (TERM, after 3 seconds KILL) and the exit code is 0.
Or the server died: the exit code is `SERVER_DIED`.

LOCK_FD is a locked file descriptor that the server inherits too: the lock is free again
when no server is left, even where both we and the parent were killed.
"""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys

SERVER_DIED = 3
STOP_SECONDS = 3.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> int:
    """Guard one server for its whole life."""
    binary, config, lock_fd = sys.argv[1:]
    # We end with the pipe and by nothing else, or the server would be left alone.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def prepare_server() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if libc is not None:  # Linux can kill the server when even we are killed
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    # The server holds the only writing end: it reads as closed once the server is dead.
    alive_reader, alive_writer = os.pipe()
    server = subprocess.Popen(
        [binary, "-c", config],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(alive_writer, int(lock_fd)),
        preexec_fn=prepare_server,  # noqa: PLW1509 - we have one thread
    )
    os.close(alive_writer)
    try:
        os.ftruncate(int(lock_fd), 0)
        os.pwrite(int(lock_fd), f"{server.pid}\n".encode(), 0)
        print(json.dumps({"pid": server.pid}), flush=True)
        readable, _, _ = select.select([sys.stdin.fileno(), alive_reader], [], [])
        return SERVER_DIED if alive_reader in readable else 0
    finally:
        _stop(server)


def _stop(server: "subprocess.Popen[bytes]") -> None:
    server.terminate()
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


if __name__ == "__main__":
    sys.exit(main())
