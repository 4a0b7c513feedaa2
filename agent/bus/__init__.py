"""NATS behind `schemas.protocols`. Nothing outside this package imports nats."""

from agent.bus.bus import Bus, connect
from agent.bus.errors import BusError
from agent.bus.streams import ensure_streams

__all__ = ["Bus", "BusError", "connect", "ensure_streams"]
