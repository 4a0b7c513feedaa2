"""Find a nats-server binary on this machine, or fetch one.

`python -m agent.nats_server` prints the path of the server it found or installed.
Standard library only, so that it also runs before the dependencies are installed.
"""

import hashlib
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

from agent.human import reason

FLOOR = (2, 9, 0)  # the oldest server whose JetStream has what we need
SYSTEM_FOLDER = "/usr/sbin"  # Debian has it there: not on the PATH of ordinary users
PINNED_VERSION = "2.14.5"
# From nats-io/nats-docker at commit aa0caa57b71c, 2.14.x/alpine3.22/Dockerfile.
PINNED_SHA256 = {
    "linux-amd64": "5e3b603d47c447bda1f77f9ac16dbf91c90aac4ff3681f8fbbc7201e4ed99355",
    "linux-arm64": "673a98d3faa79dde3f9ebf16d6dfac36a5f694e7ad2015e4954dd7939c85cd4c",
}
RELEASES_URL = "https://github.com/nats-io/nats-server/releases/download"

SILENCE_SECONDS = 4.0  # a server that says nothing for so long counts as unreachable
DOWNLOAD_SECONDS = 120.0  # one that drips counts as unreachable after this
APT_SECONDS = 120.0
APT_OPTIONS = ("-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10")

WHAT_TO_TYPE = f"""\
Install nats-server by one of these, then run this again:
  sudo apt-get update && sudo apt-get install nats-server     (Debian, Ubuntu)
  brew install nats-server                                    (macOS)
  go install github.com/nats-io/nats-server/v2@v{PINNED_VERSION}         (Go)
or unpack a release of https://github.com/nats-io/nats-server/releases and name it:
  export NATS_SERVER_BIN=/path/to/nats-server"""

Progress = Callable[[str], None]


class ServerNotFoundError(Exception):
    """There is no usable nats-server; the text says what to type."""


class ChecksumError(ServerNotFoundError):
    """What was downloaded is not the release that we pinned; nothing was installed."""


def cache_folder() -> Path:
    """Where fetched servers are kept: below `$XDG_CACHE_HOME`, else `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "resource-agent" / "nats-server"


def find_server(option: Path | None = None) -> Path | None:
    """Return the nats-server to run, or None where this machine has none.

    Looks at `option`, the variable `NATS_SERVER_BIN`, `PATH`, `/usr/sbin` and our cache
    folder, in this order.

    Raises:
        ServerNotFoundError: `option` or `NATS_SERVER_BIN` names no executable file.
    """
    variable = os.environ.get("NATS_SERVER_BIN")
    for source, named in (("--nats-server", option), ("NATS_SERVER_BIN", variable)):
        if named:
            if not _is_executable(Path(named)):
                raise ServerNotFoundError(f"{source} is {named}: no executable file there")
            return Path(named)
    search_path = os.pathsep.join((os.environ.get("PATH", os.defpath), SYSTEM_FOLDER))
    found = shutil.which("nats-server", path=search_path)
    if found:
        return Path(found)
    cached = cache_folder() / "nats-server"
    return cached if _is_executable(cached) else None


def server_version(binary: Path) -> tuple[int, int, int]:
    """Ask the binary for its version.

    Raises:
        ServerNotFoundError: it does not run, does not say, or is older than `FLOOR`.
    """
    try:
        said = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except subprocess.CalledProcessError as error:
        raise ServerNotFoundError(
            f"{binary} does not run: `--version` ends with exit code {error.returncode}"
        ) from error
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerNotFoundError(f"{binary} does not run: {reason(error)}") from error
    match = re.search(r"nats-server: v?(\d+)\.(\d+)\.(\d+)", said)
    if match is None:
        raise ServerNotFoundError(f"{binary} is no nats-server: it says {said.strip()[:80]!r}")
    major, minor, patch = (int(part) for part in match.groups())
    if (major, minor, patch) < FLOOR:
        floor = ".".join(map(str, FLOOR))
        raise ServerNotFoundError(
            f"{binary} is {major}.{minor}.{patch}, needed is {floor} or newer\n{WHAT_TO_TYPE}"
        )
    return major, minor, patch


def fetch_server(progress: Progress, *, releases_url: str = RELEASES_URL) -> Path:
    """Install a nats-server into our cache folder and return its path.

    Takes the pinned official release; where that cannot be reached, the package of the
    distribution, unpacked without root. Each step is told to `progress`.

    Raises:
        ChecksumError: the release is not the one we pinned.
        ServerNotFoundError: neither way worked; the text lists why, and what to type.
    """
    if sys.platform == "darwin":
        raise ServerNotFoundError("no nats-server found; type: brew install nats-server")
    try:
        return _fetch_release(progress, releases_url)
    except ChecksumError:  # somebody changed it: say so rather than look elsewhere
        raise
    except ServerNotFoundError as error:
        progress(str(error))
        no_release = error
    try:
        return _fetch_package(progress)
    except ServerNotFoundError as no_package:
        raise ServerNotFoundError(
            "no nats-server found, and none could be fetched:\n"
            f"  {no_release}\n  {no_package}\n{WHAT_TO_TYPE}"
        ) from no_package


def _fetch_release(progress: Progress, releases_url: str) -> Path:
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    target = f"{platform.system().lower()}-{machine}"
    if target not in PINNED_SHA256:
        raise ServerNotFoundError(f"no release is pinned for {target}")
    name = f"nats-server-v{PINNED_VERSION}-{target}"
    return install_release(
        f"{releases_url}/v{PINNED_VERSION}/{name}.tar.gz", PINNED_SHA256[target], progress
    )


def install_release(url: str, sha256: str, progress: Progress) -> Path:
    """Download a release tarball, compare its digest, install the `nats-server` in it.

    Raises:
        ChecksumError: the digest is another one; nothing was installed.
        ServerNotFoundError: the URL cannot be reached or holds no server.
    """
    progress(f"downloading {url}")
    try:
        tarball = _download(url)
    except (OSError, HTTPException) as error:  # URLError and time-outs are OSErrors
        if isinstance(error, HTTPError):
            error.close()  # it is the open response, too
        raise ServerNotFoundError(f"{url}: {reason(error)}") from error
    found = hashlib.sha256(tarball).hexdigest()
    if found != sha256:
        raise ChecksumError(
            f"{url} is not the release we know, nothing was installed:\n"
            f"  SHA-256 expected {sha256}\n  SHA-256 found    {found}\n{WHAT_TO_TYPE}"
        )
    # Only the one file's bytes are read: no path of the archive ever touches the disk.
    with tarfile.open(fileobj=io.BytesIO(tarball), mode="r:gz") as archive:
        for member in archive:
            if member.isfile() and Path(member.name).name == "nats-server":
                content = archive.extractfile(member)
                assert content is not None  # noqa: S101 - true for every regular file
                return _install(content.read(), progress)
    raise ServerNotFoundError(f"{url} holds no nats-server")


def _download(url: str) -> bytes:
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    content = bytearray()
    with urllib.request.urlopen(url, timeout=SILENCE_SECONDS) as response:  # noqa: S310 - ours
        while chunk := response.read1(1 << 20):
            content += chunk
            if time.monotonic() > deadline:
                raise TimeoutError(f"not complete after {DOWNLOAD_SECONDS:.0f} s")
        announced = int(response.headers.get("Content-Length", len(content)))
    if len(content) < announced:  # http.client says nothing of a connection that was cut
        raise ConnectionError(f"cut after {len(content)} of {announced} bytes")
    return bytes(content)


def _fetch_package(progress: Progress) -> Path:
    """The distribution's package, which apt verifies by the distribution's keys."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise ServerNotFoundError("no apt-get and dpkg on this machine")
    with tempfile.TemporaryDirectory(prefix="nats-server-") as name:
        folder = Path(name)
        progress("downloading the distribution's package: apt-get download nats-server")
        try:
            _run(folder, "apt-get", *APT_OPTIONS, "download", "nats-server")
        except ServerNotFoundError:
            if os.geteuid() != 0:
                progress("perhaps its lists are missing; type: sudo apt-get update")
                raise
            progress("perhaps its lists are missing: apt-get update")
            _run(folder, "apt-get", *APT_OPTIONS, "update")
            _run(folder, "apt-get", *APT_OPTIONS, "download", "nats-server")
        (package,) = folder.glob("*.deb")
        _run(folder, "dpkg", "-x", str(package), "unpacked")
        for place in ("usr/sbin", "usr/bin"):
            binary = folder / "unpacked" / place / "nats-server"
            if binary.is_file():
                return _install(binary.read_bytes(), progress)
    raise ServerNotFoundError(f"{package.name} holds no nats-server")


def _run(folder: Path, *command: str) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=APT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerNotFoundError(f"{command[0]}: {reason(error)}") from error
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ServerNotFoundError(f"{' '.join((command[0], command[-2], command[-1]))}: {said}")


def _install(content: bytes, progress: Progress) -> Path:
    """Write the binary so that other processes see all of it or none."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="new-", dir=folder) as new:
            binary = Path(new) / "nats-server"
            binary.write_bytes(content)
            binary.chmod(0o755)
            version = server_version(binary)
            binary.replace(folder / "nats-server")
    except OSError as error:
        raise ServerNotFoundError(f"cannot install nats-server: {reason(error)}") from error
    progress(f"installed nats-server {'.'.join(map(str, version))} in {folder}")
    return folder / "nats-server"


def _is_executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def main() -> int:
    """Print the path of the server found, or else fetched; progress goes to stderr."""
    try:
        binary = find_server() or fetch_server(lambda line: print(line, file=sys.stderr))
        server_version(binary)
    except ServerNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    print(binary)
    return 0
