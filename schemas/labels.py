"""Labels of nodes: what whoever runs them knows of them, like their type or how they are paid."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

from msgspec import Meta

LabelName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/-]{0,126}[A-Za-z0-9])?$(?!\n)",
        description="as Kubernetes names labels: `capacity`, `topology.kubernetes.io/zone`",
    ),
]
LabelValue = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9._-]{0,63}$(?!\n)", description="value of a label")
]
Labels = Annotated[
    dict[LabelName, LabelValue],
    Meta(max_length=32, description="setting `labels` of the node's agent"),
]

NO_LABELS: Mapping[str, str] = MappingProxyType({})

FrozenLabels = tuple[tuple[str, str], ...]
"""Labels by name, to be looked up by."""


def frozen(labels: Mapping[str, str]) -> FrozenLabels:
    """`{"zone": "a", "capacity": "spot"}` → `(("capacity", "spot"), ("zone", "a"))`."""
    return tuple(sorted(labels.items())) if labels else ()
