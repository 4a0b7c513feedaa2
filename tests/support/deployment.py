"""The committed deployment, run as processes: what docker-compose.yml says, without containers."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.support.program import ROOT
from tests.support.server import NatsServer

DEADLINE_SECONDS = 30.0
LOOK_SECONDS = 0.05


def compose() -> dict[str, Any]:
    """docker-compose.yml, with `<<` merged."""
    return dict(YAML(typ="safe").load(ROOT / "docker-compose.yml"))


def dockerfile() -> list[tuple[str, str]]:
    """Instruction and argument of each line of the Dockerfile, continued lines as one."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def image_environment() -> dict[str, str]:
    """What the image itself sets of our settings."""
    pairs = [pair for word, text in dockerfile() if word == "ENV" for pair in text.split()]
    found = dict(pair.split("=", 1) for pair in pairs)
    return {name: value for name, value in found.items() if name.startswith("RESOURCE_AGENT_")}


def make_secrets(folder: Path) -> Path:
    """Run the committed script in `folder`; returns the folder of the secrets."""
    folder.mkdir(parents=True, exist_ok=True)
    script = shutil.copy(ROOT / "deploy" / "make_secrets.sh", folder)
    subprocess.run(["sh", script], check=True, timeout=DEADLINE_SECONDS)
    return folder / "secrets"


class DeployedServer(NatsServer):
    """nats-server with the committed configuration and the passwords of a fresh installation."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, (ROOT / "deploy" / "nats.conf").read_text(), jetstream=False)
        self.secrets = make_secrets(folder)
        shutil.copy(self.secrets / "passwords.conf", folder)
        self.options = ("-sd", str(folder / "store"), "-m", "-1")

    def refused_users(self) -> set[str]:
        """Users that tried what they may not do."""
        log = (self.folder / "server.log").read_text()
        return set(re.findall(r'Violation - User "(\w+)"', log))

    def url_of(self, user: str) -> str:
        password = (self.secrets / user).read_text()
        return f"nats://{user}:{password}@127.0.0.1:{self.port}"


class Deployment:
    """The services of docker-compose.yml as processes on this machine."""

    def __init__(
        self,
        folder: Path,
        server: DeployedServer,
        s3_url: str,
        changed: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.folder = folder
        self.server = server
        self._s3_url = s3_url
        self._changed = changed or {}
        self.services = {
            name: service for name, service in compose()["services"].items() if "build" in service
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def environment(self, name: str) -> dict[str, str]:
        """Exactly what the container has; addresses and paths are those of this machine."""
        state = self.folder / name
        here = {
            "nats:4222": f"127.0.0.1:{self.server.port}",
            "127.0.0.1:4222": f"127.0.0.1:{self.server.port}",
            "http://s3:8333": self._s3_url,
            "/run/secrets/nats_": f"{self.server.secrets}/",
            "/run/secrets/aws_": f"{self.server.secrets}/aws_",
            "/var/lib/resource-agent": str(state),
            "/host": "/",
        }
        given: Mapping[str, str] = {
            **image_environment(),
            **self.services[name]["environment"],
            **self._changed.get(name, {}),
        }
        own = {key: _replaced(value, here) for key, value in given.items()}
        return {"PATH": os.environ["PATH"], **own}

    def start(self, name: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                _command(self.services[name]["command"]),
                cwd=ROOT,
                env=self.environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def health(self, name: str) -> subprocess.CompletedProcess[bytes]:
        """Run the service's health check once."""
        kind, program, *arguments = self.services[name]["healthcheck"]["test"]
        assert (kind, program) == ("CMD", "resource-agent")
        return subprocess.run(
            _command(arguments),
            cwd=ROOT,
            env=self.environment(name),
            capture_output=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )

    def wait_healthy(self, name: str) -> None:
        """As Docker does: ask the health check until it says yes."""
        give_up = time.monotonic() + DEADLINE_SECONDS
        while (done := self.health(name)).returncode != 0:
            assert self._processes[name].poll() is None, self.log(name)
            assert time.monotonic() < give_up, done.stderr.decode() + self.log(name)
            time.sleep(LOOK_SECONDS)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def kill(self, name: str) -> None:
        self._processes[name].kill()
        self._processes[name].wait(DEADLINE_SECONDS)

    def stop(self) -> dict[str, int]:
        """Stop all at once, as `docker compose down` does; returns their exit codes."""
        for process in self._processes.values():
            process.terminate()
        return {name: process.wait(DEADLINE_SECONDS) for name, process in self._processes.items()}


def _command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "agent", *arguments]


def _replaced(value: str, here: Mapping[str, str]) -> str:
    for there, replacement in here.items():
        value = value.replace(there, replacement)
    return value
