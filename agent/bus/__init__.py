"""NATS behind `schemas.protocols`. Nothing outside this package imports nats."""

import sys

# For WebSocket addresses, which we do not take, nats-py imports aiohttp wherever it is installed
# (the S3 client needs it): 0.2 s and 11 MB in every process. While this stands, it finds none.
_hides_aiohttp = "aiohttp" not in sys.modules
if _hides_aiohttp:
    sys.modules["aiohttp"] = None  # type: ignore[assignment]

from agent.bus.bus import Bus  # noqa: E402
from agent.bus.connecting import connect, is_authenticated  # noqa: E402
from agent.bus.errors import BusError  # noqa: E402
from agent.bus.streams import ensure_bucket, ensure_streams  # noqa: E402

if _hides_aiohttp:
    del sys.modules["aiohttp"]


__all__ = ["Bus", "BusError", "connect", "ensure_bucket", "ensure_streams", "is_authenticated"]
