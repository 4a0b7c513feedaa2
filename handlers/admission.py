"""How many nodes and pools are followed at most: a flood of names must not stop the others."""

import structlog

from handlers.window import LastSeen
from schemas.message import Message
from schemas.units import SECOND_NS

log = structlog.get_logger()

FORGET_NS = 600 * SECOND_NS
FORGET_EVERY_NS = 5 * SECOND_NS


class Admission:
    """Refuses messages of further nodes or pools once `max_nodes` or `max_pools` are followed.

    A node or pool makes room ten minutes after its last message. Which ones are followed
    is a matter of who came first; a process that starts again, or another one, may have met
    them in another order.
    """

    def __init__(self, max_nodes: int, max_pools: int) -> None:
        self._followed: dict[str, LastSeen[str]] = {
            "nodes": LastSeen(FORGET_NS, max_nodes),
            "pools": LastSeen(FORGET_NS, max_pools),
        }
        self._next_ns = 0
        self.refused = 0

    def admits(self, message: Message, now_ns: int) -> bool:
        """Whether `message`, of stream time `now_ns`, is to be handled."""
        if now_ns >= self._next_ns:
            self._next_ns = now_ns + FORGET_EVERY_NS
            for seen in self._followed.values():
                seen.forget(now_ns)
        node = getattr(message, "node", None)
        pool = getattr(message, "pool", None)
        for what, name in (("nodes", node), ("pools", pool)):
            if name and not self._followed[what].see(name, now_ns):
                self._refuse(what, name)
                return False
        return True

    def text(self) -> str:
        """How many are followed."""
        nodes, pools = (len(seen) for seen in self._followed.values())
        return f"{nodes} nodes in {pools} pools followed, {self.refused} messages of others refused"

    def _refuse(self, what: str, name: str) -> None:
        self.refused += 1
        if self.refused == 1:
            log.error("too_many_" + what, refused=name, most=len(self._followed[what]))
