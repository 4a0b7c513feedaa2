"""Subjects, streams and buckets under one configurable root."""

import re

DEFAULT_ROOT = "fleet.v1"


class Names:
    """Turns names below the root into absolute ones, and back.

    `fleet.v1` gives `FLEET_METRICS` and `fleet-registry`; any other root carries its own slug, so
    that two installations can share a server: `lab.v1` → `FLEET_LAB_V1_METRICS`,
    `fleet-lab-v1-registry`.
    """

    def __init__(self, root: str = DEFAULT_ROOT) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", root):
            raise ValueError(f"subject root {root!r} is not a row of subject tokens")
        self.root = root
        self._prefix = f"{root}."
        slug = "" if root == DEFAULT_ROOT else re.sub(r"[.]", "_", root).upper() + "_"
        self._stream_prefix = f"FLEET_{slug}"

    def absolute(self, subject: str) -> str:
        """`metrics.>` → `fleet.v1.metrics.>`."""
        return self._prefix + subject

    def relative(self, subject: str) -> str:
        """`fleet.v1.metrics.host.n1` → `metrics.host.n1`; others come back unchanged."""
        return subject.removeprefix(self._prefix)

    def stream(self, name: str) -> str:
        """`METRICS` → `FLEET_METRICS`; a bucket's stream (`KV_…`) comes back unchanged."""
        return name if name.startswith("KV_") else self._stream_prefix + name

    def bucket(self, name: str) -> str:
        """`registry` → `fleet-registry`."""
        return self._stream_prefix.lower().replace("_", "-") + name
