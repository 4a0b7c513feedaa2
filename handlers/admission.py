"""How many nodes, pools and parts are followed: a flood of names must not stop the others."""

import structlog

from handlers.window import LastSeen
from schemas.message import Message
from schemas.units import SECOND_NS

log = structlog.get_logger()

FORGET_NS = 600 * SECOND_NS
FORGET_EVERY_NS = 5 * SECOND_NS
MAX_PARTS = 256
"""Of one node: 16 GPUs with 7 MIG instances each, and the 64 engines an agent scrapes at most."""


class Admission:
    """Refuses messages of further nodes or pools once `max_nodes` or `max_pools` are followed.

    Of one node also those of further GPUs and engines once `MAX_PARTS` are followed. Each makes
    room ten minutes after its last message. Which ones are followed is a matter of who came
    first; a process that starts again, or another one, may have met them in another order.
    """

    def __init__(self, max_nodes: int, max_pools: int) -> None:
        self._followed: dict[str, LastSeen[str]] = {
            "nodes": LastSeen(FORGET_NS, max_nodes),
            "pools": LastSeen(FORGET_NS, max_pools),
        }
        self._parts: dict[str, LastSeen[str]] = {}  # of each node
        self._next_ns = 0
        self.refused = 0

    def admits(self, message: Message, now_ns: int) -> bool:
        """Whether `message`, of stream time `now_ns`, is to be handled."""
        if now_ns >= self._next_ns:
            self._next_ns = now_ns + FORGET_EVERY_NS
            for seen in self._followed.values():
                seen.forget(now_ns)
            for gone in self._parts.keys() - set(self._followed["nodes"]):
                del self._parts[gone]
        node = getattr(message, "node", None)
        pool = getattr(message, "pool", None)
        for what, name in (("nodes", node), ("pools", pool)):
            if name and not self._followed[what].see(name, now_ns):
                self._refuse(what, name, len(self._followed[what]))
                return False
        part = getattr(message, "gpu", None) or getattr(message, "engine", None)
        if node and part and not self._follows_part(node, part, now_ns):
            self._refuse("parts", f"{node} {part}", MAX_PARTS)
            return False
        return True

    def _follows_part(self, node: str, part: str, now_ns: int) -> bool:
        parts = self._parts.get(node)
        if parts is None:
            parts = self._parts[node] = LastSeen(FORGET_NS, MAX_PARTS)
        if parts.see(part, now_ns):
            return True
        parts.forget(now_ns)
        return parts.see(part, now_ns)

    def text(self) -> str:
        """How many are followed."""
        nodes, pools = (len(seen) for seen in self._followed.values())
        return f"{nodes} nodes in {pools} pools followed, {self.refused} messages of others refused"

    def _refuse(self, what: str, name: str, most: int) -> None:
        self.refused += 1
        if self.refused == 1:
            log.error("too_many_" + what, refused=name, most=most)
