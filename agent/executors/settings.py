"""Settings of the executor: who approves what, and how pools are changed."""

import re
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

Approval: TypeAlias = Literal["auto", "ask", "never"]

PLACEHOLDERS = ("pool", "replicas_from", "replicas_to", "recommendation_id")
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of settings; unknown keys are errors."""


class ApprovalSettings(Table, frozen=True, kw_only=True):
    """What becomes of advice by its risk, without a person."""

    low: Annotated[
        Approval,
        Meta(description="low risk. auto: accepted and carried out; never: rejected; ask: left"),
    ] = "ask"
    medium: Annotated[Approval, Meta(description="medium risk")] = "ask"
    high: Annotated[Approval, Meta(description="high risk")] = "ask"


class CommandSettings(Table, frozen=True, kw_only=True):
    """The executor `command`: a program for each change, without a shell."""

    scale: Annotated[
        tuple[str, ...],
        Meta(
            description="program and arguments that change a pool; `{pool}`, `{replicas_from}`, "
            "`{replicas_to}` and `{recommendation_id}` are filled in"
        ),
    ] = ()
    observe: Annotated[
        tuple[str, ...],
        Meta(
            description="program and arguments that print how many replicas `{pool}` has; "
            "without, the state before and after is not known"
        ),
    ] = ()
    pools: Annotated[tuple[str, ...], Meta(description="pools that may be changed; none: all")] = ()
    environment: Annotated[
        tuple[str, ...],
        Meta(description="variables that the programs get beside PATH, HOME and LANG"),
    ] = ()

    def __post_init__(self) -> None:
        """Placeholders that nothing fills are found at start."""
        for name, argv in (("scale", self.scale), ("observe", self.observe)):
            known = PLACEHOLDERS if name == "scale" else ("pool",)
            for placeholder in _PLACEHOLDER.findall(" ".join(argv)):
                if placeholder not in known:
                    raise ValueError(
                        f"executor.command.{name} has {{{placeholder}}}; there are "
                        + ", ".join(f"{{{word}}}" for word in known)
                    )


class KubernetesSettings(Table, frozen=True, kw_only=True):
    """The executor `kubernetes`: the `scale` of a Deployment."""

    server: Annotated[
        str, Meta(description="address of the API; as given within a cluster by default")
    ] = "https://kubernetes.default.svc"
    token_file: Annotated[
        str, Meta(description="file with the bearer token, read for every call")
    ] = "/var/run/secrets/kubernetes.io/serviceaccount/token"  # noqa: S105 - where it is, not what
    ca_file: Annotated[str, Meta(description="file with the cluster's CA; empty: the system's")] = (
        "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
    )
    deployments: Annotated[
        dict[str, str],
        Meta(description="pool → `namespace/deployment`; other pools are not changed"),
    ] = {}
    call_seconds: Annotated[
        float, Meta(gt=0, le=300, description="a call of the API that takes longer has failed")
    ] = 10.0

    def __post_init__(self) -> None:
        """Addresses and names that cannot be right are found at start."""
        if not re.fullmatch(r"https?://[^/\s?#@]+(/[^\s?#]*)?", self.server):
            raise ValueError(f"executor.kubernetes.server {self.server!r} is not an address")
        name = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
        for pool, deployment in self.deployments.items():
            if not re.fullmatch(f"{name}/{name}", deployment):
                raise ValueError(
                    f"executor.kubernetes.deployments.{pool} is {deployment!r}, not "
                    "`namespace/deployment`"
                )


class ExecutorSettings(Table, frozen=True, kw_only=True):
    """The executor: an optional role, off by default."""

    kind: Annotated[
        Literal["none", "command", "kubernetes"],
        Meta(description="how pools are changed; none: `up` runs no executor"),
    ] = "none"
    dry_run: Annotated[
        bool, Meta(description="true: only says what it would do, whatever it is asked")
    ] = True
    approval: Annotated[ApprovalSettings, Meta(description="policy by risk")] = ApprovalSettings()
    deciders: Annotated[
        tuple[str, ...],
        Meta(description="roles whose decisions count: `decided_by` up to the colon"),
    ] = ("operator", "orchestrator", "local", "policy")
    timeout_seconds: Annotated[
        float,
        Meta(gt=0, le=3600, description="an execution that takes longer is ended, and has failed"),
    ] = 60.0
    rollback_expires_seconds: Annotated[
        float, Meta(gt=0, le=86400, description="how long advice to go back stands")
    ] = 3600.0
    command: Annotated[CommandSettings, Meta(description="by a program")] = CommandSettings()
    kubernetes: Annotated[KubernetesSettings, Meta(description="by Kubernetes")] = (
        KubernetesSettings()
    )

    def __post_init__(self) -> None:
        """An executor that cannot do anything is found at start."""
        if self.kind == "command" and not self.command.scale:
            raise ValueError('executor.kind = "command" needs executor.command.scale')
        if self.kind == "kubernetes" and not self.kubernetes.deployments:
            raise ValueError('executor.kind = "kubernetes" needs executor.kubernetes.deployments')
