"""Reads of large values: what a hit says instead of the value, and slices of it."""

import asyncio
from collections.abc import Awaitable, Callable

from cache.entry import Entry
from cache.namespace import Namespace
from cache.requests import read_version
from cache.value_file import ValueFile
from schemas.cache import INLINE_LIMIT_BYTES, encode_header, read_range
from schemas.protocols import Answer, Call, Endpoint, RequestError
from schemas.units import instant

MISS = Answer(headers={"Fleet-Status": "miss"})


class Ranges:
    """Answers hits: small values themselves, large ones slice by slice, or by the file they are."""

    def __init__(self, namespace: Namespace, instance: str, key_of: Callable[[Call], str]) -> None:
        """`key_of` gives the key that a request names."""
        self._namespace = namespace
        self._instance = instance
        self._key_of = key_of

    def endpoint(self) -> Endpoint:
        """Gives slices, at this instance alone."""
        name = self._namespace.name
        return Endpoint(f"cache_range_{name}", f"cache.{name}.range.{self._instance}", self.read)

    def hit(self, entry: Entry, call: Call) -> Answer | Awaitable[Answer]:
        """The value, or where it is: in a file for who is on this host, in ranges for others."""
        if isinstance(entry.value, ValueFile) and "Fleet-Same-Host" in call.headers:
            headers = self._where(entry) | {"Fleet-File": encode_header(entry.value.path)}
            if entry.expires_at_ns is not None:
                headers["Fleet-Expires-At"] = instant(entry.expires_at_ns).isoformat()
            return Answer(headers=headers)
        try:
            if entry.value_bytes <= INLINE_LIMIT_BYTES:
                return Answer(entry.payload(), {"Fleet-Version": entry.version})
            if not entry.digest:
                return self._digested(entry)
        except OSError:
            self._namespace.holdings.lose(entry)
            return MISS
        return Answer(headers=self._where(entry))

    async def _digested(self, entry: Entry) -> Answer:
        """A large value of which nobody needed the digest so far."""
        try:
            await asyncio.to_thread(entry.compute_digest)
        except OSError:
            self._namespace.holdings.lose(entry)
            return MISS
        return Answer(headers=self._where(entry))

    def _where(self, entry: Entry) -> dict[str, str]:
        return {
            "Fleet-Version": entry.version,
            "Fleet-Size": str(entry.value_bytes),
            "Fleet-Digest": entry.digest,
            "Fleet-Instance": self._instance,
        }

    def read(self, call: Call) -> Answer:
        """The bytes `Fleet-Range` of the version `Fleet-Version`; counts as no access.

        Raises:
            RequestError: 409 when that version is no longer here; 400 a header is malformed.
        """
        key = self._key_of(call)
        version = read_version(call.headers)
        if version is None:
            raise RequestError(400, "header Fleet-Version is missing")
        found = self._namespace.peek(key)
        if found is None or found[0].version != version:
            raise _changed(version)
        first, end = read_range(call.headers, found[0].value_bytes)
        try:
            return Answer(found[0].payload(first, end))
        except OSError:
            self._namespace.holdings.lose(found[0])
            raise _changed(version) from None


def _changed(version: str) -> RequestError:
    return RequestError(409, f"version {version} is no longer here; get again")
