"""Tells of a pool what is not advised, and why: once that lasts, and again from time to time."""

import msgspec

from schemas.scaling import HeldAdvice
from schemas.units import SECOND_NS, instant

LASTING_NS = 30 * SECOND_NS
AGAIN_NS = 600 * SECOND_NS


class HeldLog(msgspec.Struct):
    """What is held of a pool since when, and what was last told of it; None: nothing."""

    kind: tuple[str, str | None] | None = None
    since_ns: int = 0
    told: HeldAdvice | None = None
    told_ns: int = 0

    def news(self, held: HeldAdvice | None, now_ns: int) -> HeldAdvice | None:
        """What is to be told at a tick, which then counts as told; None: nothing."""
        kind = _kind(held)
        if kind != self.kind:
            self.kind, self.since_ns = kind, now_ns
        is_known = kind == _kind(self.told)
        if now_ns - self.since_ns < LASTING_NS or (
            is_known and (held is None or now_ns - self.told_ns < AGAIN_NS)
        ):
            return None
        message = held
        if message is None and self.told is not None:
            message = msgspec.structs.replace(
                self.told, decided_at=instant(now_ns), reason=None, text=""
            )
        self.told, self.told_ns = held, now_ns
        return message


def _kind(held: HeldAdvice | None) -> tuple[str, str | None] | None:
    return None if held is None else (held.action, held.reason)
