"""Rules and silences in the bucket `fleet-config`: heard there, and changed by compare-and-set."""

import asyncio
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any, Self

import msgspec

from handlers.alerting.book import REMOVED, RULE_KEY, SILENCE_KEY, AlertBook
from handlers.alerting.rule import Rule
from schemas.alerts import RULE_NAME, AlertRule, Silence
from schemas.lifecycle import Component
from schemas.protocols import (
    Bucket,
    Delivery,
    PublishError,
    RequestError,
    RevisionConflictError,
    Subscriber,
)
from schemas.units import SECOND_NS, instant, to_ns

TRIES = 10
HEARD_SECONDS = 5.0
MAX_SHOWN = 200
"""Characters of an error."""
MAX_RULES = 500
MAX_SILENCES = 1000
KEPT_NS = 86_400 * SECOND_NS
"""Silences that are over stay to be seen for so long."""


class AlertConfiguration:
    """Keeps a book as `fleet-config` has it, and writes there; an async context manager.

    Inside it, the book has heard all that was kept. Who changes something returns when this
    process goes by it; the others hear of it as soon as the server tells them.
    """

    def __init__(
        self, book: AlertBook, bucket: Bucket, subscriber: Subscriber, bucket_name: str
    ) -> None:
        self.book = book
        self._bucket = bucket
        self._subscriber = subscriber
        self._stream = f"KV_{bucket_name}"
        self._prefix = f"$KV.{bucket_name}."
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        subject = f"{self._prefix}handlers.>"
        async for delivery in self._subscriber.read(self._stream, subject=subject):
            self._take(delivery)
        self._unfollow = await self._subscriber.follow(
            self._stream, self._take, subject=subject, start_sequence=self.book.revision + 1
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._unfollow()

    def component(self, now_ns: int) -> Component:
        """Whether all records are good."""
        rules, problems = self.book.current.rules, self.book.problems
        text = f"{len(rules)} rules, {len(self.book.current.silences)} silences"
        for key, why in problems.items():
            text += f"; {key} in fleet-config is refused: {why[:MAX_SHOWN]}"
        return Component(
            name="alert_rules",
            state="degraded" if problems else "ok",
            text=text,
            probed_at=instant(now_ns),
        )

    def _take(self, delivery: Delivery) -> None:
        is_gone = delivery.headers.get("KV-Operation") in ("DEL", "PURGE")
        self.book.heard(
            delivery.subject.removeprefix(self._prefix),
            None if is_gone else delivery.payload,
            delivery.sequence,
            delivery.stored_ns,
        )
        self._news.set()
        self._news = asyncio.Event()

    async def set_rule(self, fields: Mapping[str, Any], expected_version: int | None) -> Rule:
        """Add a rule, or change the fields given of the one of that name.

        Raises:
            RequestError: 400 with the field that is wrong; 409 another version; 503 no answer.
        """
        name = fields.get("name")
        if not isinstance(name, str) or re.fullmatch(RULE_NAME, name) is None:
            raise RequestError(
                400, "rule.name must be of lower-case letters, digits and _, at most 40 of them"
            )
        key = f"{RULE_KEY}{name}"

        def changed(present: Rule | None) -> bytes:
            version = 0 if present is None else present.version
            if expected_version not in (None, version):
                raise RequestError(409, f"version {expected_version} expected, {version} is here")
            if present is None and len(self.book.current.rules) >= MAX_RULES:
                raise RequestError(400, f"there are {MAX_RULES} rules: remove one first")
            if present is None and "metric" not in fields:
                unknown = self._no_rule(name, self.book.current.rules).text
                raise RequestError(400, f"{unknown}; a new one needs its metric")
            before = {} if present is None else msgspec.structs.asdict(present.settings)
            try:
                rule = msgspec.convert({**before, **fields}, AlertRule)
                Rule(rule)
            except ValueError as error:
                raise RequestError(400, f"rule {name} is refused: {error}") from error
            return msgspec.json.encode(rule)

        await self._write(key, lambda: changed(self.book.current.rules.get(name)))
        return self.book.current.rules[name]

    async def delete_rule(self, name: str) -> None:
        """Have a rule judged no more; one of the settings is off until `reset_rule`.

        Raises:
            RequestError: 404 no such rule; 503 no answer.
        """
        await self._catch_up(f"{RULE_KEY}{name}")
        if name not in self.book.current.rules:
            raise self._no_rule(name, self.book.current.rules)
        if self.book.is_of_settings(name):
            await self._write(f"{RULE_KEY}{name}", lambda: REMOVED)
        else:
            await self._remove(f"{RULE_KEY}{name}")

    async def reset_rule(self, name: str) -> Rule:
        """Go back to the settings' rule of this name.

        Raises:
            RequestError: 404 the settings have none; 503 no answer.
        """
        if not self.book.is_of_settings(name):
            raise self._no_rule(name, self.book.of_settings)
        await self._remove(f"{RULE_KEY}{name}")
        return self.book.current.rules[name]

    def _no_rule(self, name: str, known: Mapping[str, object]) -> RequestError:
        near = get_close_matches(name, known, n=3)
        hint = f"; near it: {', '.join(near)}" if near else ""
        return RequestError(404, f"there is no alert rule {name!r}{hint}")

    async def silence(self, silence: Silence, now_ns: int, *, future: bool) -> None:
        """Begin a silence; those that ended a day ago are forgotten.

        With `future` also one for rules that are not there yet.

        Raises:
            RequestError: 400 too many silences; 404 no such rule; 503 no answer.
        """
        if not future:
            await self._refuse_stray(silence.rule)
        for old in self.book.current.silences:
            if to_ns(old.ends_at) + KEPT_NS <= now_ns:
                await self._remove(f"{SILENCE_KEY}{old.silence_id}")
        if len(self.book.current.silences) >= MAX_SILENCES:
            raise RequestError(400, f"there are {MAX_SILENCES} silences: take one back first")
        record = msgspec.json.encode(silence)
        await self._write(f"{SILENCE_KEY}{silence.silence_id}", lambda: record)

    async def _refuse_stray(self, pattern: str) -> None:
        """Refuse a pattern that no rule matches, be that off or removed: nothing is silenced."""
        await self._catch_up(f"{RULE_KEY}{pattern}")
        known = sorted({*self.book.of_settings, *self.book.current.rules})
        if not pattern.strip("*") or any(fnmatchcase(name, pattern) for name in known):
            return
        near = get_close_matches(re.sub(r"[*?\[\]]", "", pattern), known, n=3, cutoff=0.5)
        hint = f"near it: {', '.join(near)}" if near else f"there are: {', '.join(known[:50])}"
        raise RequestError(
            404, f"no alert rule matches {pattern!r}; {hint} (--future: for a rule that is to come)"
        )

    async def unsilence(self, silence_id: str) -> None:
        """Take a silence back.

        Raises:
            RequestError: 404 no such silence; 503 no answer.
        """
        await self._catch_up(f"{SILENCE_KEY}{silence_id}")
        if all(one.silence_id != silence_id for one in self.book.current.silences):
            raise RequestError(404, f"there is no silence {silence_id!r}")
        await self._remove(f"{SILENCE_KEY}{silence_id}")

    async def _write(self, key: str, make: Callable[[], bytes]) -> None:
        """Store what `make` gives in view of what is there, and return when it was heard."""
        for _ in range(TRIES):
            try:
                found = await self._bucket.get(key)
                if found is not None:
                    await self._until(found[1])
                record = make()
                if found is not None and found[0] == record:
                    return
                if found is None:
                    revision = await self._bucket.create(key, record)
                else:
                    revision = await self._bucket.update(key, record, found[1])
            except RevisionConflictError:
                continue
            except PublishError as error:
                raise RequestError(503, "fleet-config cannot be written now") from error
            await self._until(revision)
            if key in self.book.problems:
                raise RequestError(500, f"{key}: {self.book.problems[key]}")
            return
        raise RequestError(409, f"somebody else keeps writing {key}")

    async def _remove(self, key: str) -> None:
        try:
            found = await self._bucket.get(key)
            if found is None:
                return
            await self._bucket.delete(key)
        except PublishError as error:
            raise RequestError(503, "fleet-config cannot be written now") from error
        await self._until(found[1] + 1)

    async def _catch_up(self, key: str) -> None:
        """Hear what another process may just have written there."""
        if re.fullmatch(r"[A-Za-z0-9._-]+", key) is None:
            return  # no key can be called so
        try:
            found = await self._bucket.get(key)
        except PublishError as error:
            raise RequestError(503, "fleet-config cannot be read now") from error
        if found is not None:
            await self._until(found[1])

    async def _until(self, revision: int) -> None:
        """Wait until the book has heard this revision, or a later one."""
        try:
            async with asyncio.timeout(HEARD_SECONDS):
                while self.book.revision < revision:
                    await self._news.wait()
        except TimeoutError as error:
            raise RequestError(503, "the change is kept, but not heard of yet") from error
