"""Reads of large values: what a hit says instead of the value, and slices of it."""

from cache.entry import Entry
from cache.namespace import Namespace
from cache.requests import read_version
from schemas.cache import INLINE_LIMIT_BYTES, read_key, read_range
from schemas.protocols import Answer, Call, Endpoint, RequestError


class Ranges:
    """Answers hits: small values themselves, large ones slice by slice, none of them copied."""

    def __init__(self, namespace: Namespace, instance: str) -> None:
        self._namespace = namespace
        self._instance = instance

    def endpoint(self) -> Endpoint:
        """Gives slices, at this instance alone."""
        name = self._namespace.name
        return Endpoint(f"cache_range_{name}", f"cache.{name}.range.{self._instance}", self.read)

    def hit(self, entry: Entry) -> Answer:
        """The value, or where its slices are."""
        if entry.value_bytes <= INLINE_LIMIT_BYTES:
            return Answer(entry.payload(), {"Fleet-Version": entry.version})
        return Answer(
            headers={
                "Fleet-Version": entry.version,
                "Fleet-Size": str(entry.value_bytes),
                "Fleet-Digest": entry.digest,
                "Fleet-Instance": self._instance,
            }
        )

    def read(self, call: Call) -> Answer:
        """The bytes `Fleet-Range` of the version `Fleet-Version`; counts as no access.

        Raises:
            RequestError: 409 when that version is no longer here; 400 a header is malformed.
        """
        key = read_key(call.payload)
        version = read_version(call.headers)
        if version is None:
            raise RequestError(400, "header Fleet-Version is missing")
        found = self._namespace.peek(key)
        if found is None or found[0].version != version:
            raise RequestError(409, f"version {version} is no longer here; get again")
        first, end = read_range(call.headers, found[0].value_bytes)
        return Answer(found[0].payload(first, end))
