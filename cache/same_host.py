"""What only clients on the same host do: put by file, and tell of reads they did without asking."""

import asyncio
from collections.abc import Awaitable, Callable

from cache.classes import Classes
from cache.entry import Entry
from cache.namespace import Namespace
from cache.requests import PutRequest
from schemas.api import Touched, TouchedReply
from schemas.protocols import Answer, Call, Clock, Endpoint, RequestError, json_endpoint

Store = Callable[[Entry, str | None], Answer | Awaitable[Answer]]
"""Makes the entry visible, if its key still has the expected version; gives the put's answer."""


class SameHost:
    """Takes over files from the inbox, and counts what clients read from files they keep open."""

    def __init__(
        self,
        namespace: Namespace,
        instance: str,
        store: Store,
        kept_key: Callable[[Call], Callable[[str], str]],
        classes: Classes,
        clock: Clock,
    ) -> None:
        """`kept_key` gives what gives the key under which a client's key is kept."""
        self._namespace = namespace
        self._classes = classes
        self._instance = instance
        self._store = store
        self._kept_key = kept_key
        self._clock = clock

    def endpoint(self) -> Endpoint:
        """Hears of reads, as the owner alone."""
        name = self._namespace.name
        return json_endpoint(
            f"cache_touched_{name}",
            f"cache.{name}.touched",
            Touched,
            self.touched,
            reply_type=TouchedReply,
        )

    def put(self, request: PutRequest, name: str) -> Answer | Awaitable[Answer]:
        """Keep the file `name` of the inbox.

        It is not copied, and nobody can write to it any more. With `Fleet-Digest` it is kept only
        if that is its digest.
        """
        value = self._namespace.files.take(name, request.size_bytes)
        expected_digest, request.digest = request.digest, ""
        entry = request.entry(value, self._clock())
        if expected_digest:
            return self._put_checked(request, entry, expected_digest)
        return self._store(entry, request.expected_version)

    async def _put_checked(self, request: PutRequest, entry: Entry, expected_digest: str) -> Answer:
        if await asyncio.to_thread(entry.compute_digest, expected_digest) != expected_digest:
            raise RequestError(
                400, "header Fleet-Digest: the file has another digest; send the value again"
            )
        answer = self._store(entry, request.expected_version)
        return answer if isinstance(answer, Answer) else await answer

    def touched(self, request: Touched, call: Call) -> TouchedReply:
        """Count the reads, each for the class of its entry.

        The answer also says that this instance owns the namespace now.
        """
        kept_key, counted = self._kept_key(call), 0
        for read in request.reads:
            entry = self._namespace.touch(kept_key(read.key), read.version, read.hits)
            if entry is not None:
                self._classes.hit(None, entry, read.hits)
                counted += 1
        return TouchedReply(instance=self._instance, counted=counted)
