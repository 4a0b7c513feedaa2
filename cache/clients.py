"""Who asks: how many clients at once, and keys that are private to one of them."""

import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from schemas.cache import MAX_KEY_BYTES
from schemas.lmcache import LmcacheConfig
from schemas.protocols import RequestError, busy
from schemas.units import SECOND_NS

WINDOW_NS = 60 * SECOND_NS

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


class Clients:
    """The clients of one namespace, by the name they give in `Fleet-Client`.

    Names are not proven: this keeps clients out of each other's way, it does not protect them from
    one another. Requests without a name count as one client together. A client counts from its
    last request on for a minute, by a clock that no wall clock moves.
    """

    def __init__(self, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._monotonic_ns = monotonic_ns
        self._last_seen: OrderedDict[str, int] = OrderedDict()

    def admit(self, config: LmcacheConfig, headers: Mapping[str, str]) -> str:
        """The client's name, "" without one. O(1), but for clients that fall out of the window.

        Raises:
            RequestError: 400 the name is malformed; 429 there are too many others.
        """
        name = headers.get("Fleet-Client", "")
        seen, now_ns = self._last_seen, self._monotonic_ns()
        if name not in seen:
            if name and not _NAME.fullmatch(name):
                raise RequestError(400, f"header Fleet-Client must match {_NAME.pattern}")
            while seen and now_ns - next(iter(seen.values())) >= WINDOW_NS:
                seen.popitem(last=False)
            if len(seen) >= config.max_concurrent_users:
                wait_seconds = (WINDOW_NS - now_ns + next(iter(seen.values()))) / SECOND_NS
                raise busy(
                    f"{len(seen)} clients within a minute, and max_concurrent_users is "
                    f"{config.max_concurrent_users}; try again in {max(1, round(wait_seconds))} s",
                    max(1.0, wait_seconds),
                )
        seen[name] = now_ns
        seen.move_to_end(name)
        return name

    def key(self, config: LmcacheConfig, client: str, key: str) -> str:
        """The key under which `client`'s `key` is kept: itself where clients share.

        Raises:
            RequestError: 400 clients do not share, and the name is missing or the key too long.
        """
        if config.enable_sharing:
            return key
        if not client:
            raise RequestError(
                400, "enable_sharing is off: the header Fleet-Client must say whose key it is"
            )
        private = f"\0client\0{client}\0{key}"
        if len(private.encode()) > MAX_KEY_BYTES:
            most = MAX_KEY_BYTES - len(client) - len("\0client\0\0")
            raise RequestError(
                400, f"enable_sharing is off: keys of {client} have at most {most} bytes"
            )
        return private

    def keys(
        self, config: LmcacheConfig, headers: Mapping[str, str], keys: Sequence[str]
    ) -> Sequence[str]:
        """The keys under which those of the client that asks are kept.

        Raises:
            RequestError: as `admit` and `key`.
        """
        client = self.admit(config, headers)
        return keys if config.enable_sharing else [self.key(config, client, key) for key in keys]
