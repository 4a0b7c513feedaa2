"""The options that many commands share."""

from pathlib import Path
from typing import Annotated

import typer

from agent.cli import namespace

NatsUrl = Annotated[
    str | None, typer.Option("--nats-url", help="NATS server; else NATS_URL, the running `up`, …")
]
PasswordFile = Annotated[
    Path | None,
    typer.Option("--nats-password-file", help="file with the password for nats://user@host"),
]
StateDir = Annotated[
    Path | None, typer.Option("--state-dir", help="folder for everything that is kept")
]
Config = Annotated[Path | None, typer.Option("--config", help="settings file (TOML)")]
Node = Annotated[str | None, typer.Option("--node", help="name of this machine")]
Engines = Annotated[
    list[str] | None,
    typer.Option(
        "--engine",
        help="URL of a metrics page of vLLM, SGLang, LMCache or dcgm-exporter; may be repeated",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="machine-readable output on stdout")]
Namespace = Annotated[
    str, typer.Option("--namespace", "-n", help="cache namespace", callback=namespace.checked)
]
