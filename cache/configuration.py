"""The configuration of a namespace: checked, merged, and kept in the bucket `fleet-config`."""

from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

import msgspec
import structlog

from cache.policies import POLICIES
from schemas.lmcache import LmcacheConfig
from schemas.message import UNDECODABLE
from schemas.protocols import Bucket, Delivery, RevisionConflictError

log = structlog.get_logger()

TRIES = 5
MAX_SHOWN = 80
"""Characters of a refused value."""

_TYPES: Mapping[str, Any] = get_type_hints(LmcacheConfig, include_extras=True)
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class ConfigurationError(ValueError):
    """A field or value is refused; the text names field, value and rule."""


class ConfigurationConflictError(Exception):
    """The configuration has another version than expected, or changes all the time."""


def read_fields(payload: bytes) -> dict[str, Any]:
    """The fields of a JSON object that are not null, unchecked.

    Raises:
        ConfigurationError: it is no JSON object.
    """
    try:
        fields = _decode(payload)
    except UNDECODABLE as error:
        raise ConfigurationError(f"not a JSON object of fields: {error}") from None
    return {name: value for name, value in fields.items() if value is not None}


def unknown_fields(fields: Mapping[str, Any]) -> list[str]:
    """Names that no field of a configuration has."""
    return sorted(name for name in fields if name not in _TYPES)


def check_fields(fields: Mapping[str, Any]) -> None:
    """Check the known ones among `fields`.

    Raises:
        ConfigurationError: a value breaks its rule.
    """
    for name, value in fields.items():
        if name not in _TYPES:
            continue
        kind = _TYPES[name]
        rule = next(
            (meta.extra["rule"] for meta in getattr(kind, "__metadata__", ()) if meta.extra),
            "must be true or false",
        )
        if name == "eviction_policy":
            rule = f"must be one of {', '.join(sorted(POLICIES))}"
        try:
            msgspec.convert(value, kind)
            refused = name == "eviction_policy" and value not in POLICIES
        except msgspec.ValidationError:
            refused = True
        if refused:
            shown = msgspec.json.encode(value).decode()
            shown = shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}..."
            raise ConfigurationError(f"{name} = {shown} is refused: it {rule}")


class Configuration:
    """The configuration in force: the settings' with what the bucket's record changes.

    The record `cache.<namespace>` is a JSON object of changed fields; its revision in the bucket
    is the configuration's version. It is written by compare-and-set and heard when somebody else
    writes it. One that is refused changes nothing, and `problem` says why; its last good
    predecessor is kept in the state bucket for the next start. Fields of newer releases stay in
    the record and do nothing.
    """

    def __init__(
        self,
        bucket: Bucket,
        state: Bucket,
        namespace: str,
        settings: LmcacheConfig,
    ) -> None:
        self._bucket = bucket
        self._state = state
        self._namespace = namespace
        self._key = f"cache.{namespace}"
        self._good_key = f"cache.{namespace}.configuration"
        self._settings = settings
        self._fields: dict[str, Any] = {}
        self._is_stored = False
        self.current = self._settings
        self.version = 0
        self.problem = ""
        self.on_change: Callable[[], None] = lambda: None

    @property
    def ignored(self) -> list[str]:
        """Fields of the record that this release does not know."""
        return unknown_fields(self._fields)

    async def load(self) -> None:
        """Take over what the bucket has, or the last good record where that is refused.

        Raises:
            PublishError: the server does not answer.
        """
        found = await self._bucket.get(self._key)
        self._is_stored = found is not None
        if found is None:
            self._use({}, 0)
            return
        record, version = found
        if self._try(record, version):
            return
        good = await self._state.get(self._good_key)
        problem = self.problem
        if good is None or not self._try(good[0], version):
            self._use({}, version)
        self.problem = problem

    async def change(self, changes: Mapping[str, Any], expected_version: int | None) -> None:
        """Check `changes`, store them, and use them.

        Raises:
            ConfigurationError: an unknown field, or a value that breaks its rule.
            ConfigurationConflictError: the version is not the expected one.
            PublishError: the server does not answer; the change may or may not be stored.
        """
        if unknown := unknown_fields(changes):
            raise ConfigurationError(
                f"unknown field {', '.join(unknown)[:MAX_SHOWN]}; known: {', '.join(_TYPES)}"
            )
        check_fields(changes)
        for _ in range(TRIES):
            if expected_version not in (None, self.version):
                raise ConfigurationConflictError(
                    f"version {expected_version} expected, {self.version} is here"
                )
            if not changes:
                return
            fields = {**self._fields, **changes}
            try:
                version = await self._write(msgspec.json.encode(fields))
            except RevisionConflictError:
                await self.load()
                continue
            self._is_stored = True
            self._use(fields, version)
            return
        raise ConfigurationConflictError(f"somebody else keeps writing {self._key}")

    async def keep_good(self) -> None:
        """Keep the record in force where a refused successor cannot take its place.

        Raises:
            PublishError: the server does not answer.
        """
        if not self.problem:
            await self._state.put(self._good_key, msgspec.json.encode(self._fields))

    def heard(self, delivery: Delivery) -> None:
        """The record as it stands in the bucket's stream: ours, or somebody else's."""
        if delivery.sequence <= self.version:
            return
        if delivery.headers.get("KV-Operation") in ("DEL", "PURGE"):
            self._is_stored = False
            self._use({}, delivery.sequence)
            return
        self._is_stored = True
        self._try(delivery.payload, delivery.sequence)

    def _try(self, record: bytes, version: int) -> bool:
        try:
            fields = read_fields(record)
            check_fields(fields)
        except ConfigurationError as error:
            self.version = version
            self.problem = f"version {version} in fleet-config: {error}"
            log.error("configuration_refused", namespace=self._namespace, error=self.problem)
            return False
        self._use(fields, version)
        return True

    def _use(self, fields: dict[str, Any], version: int) -> None:
        self.version, self.problem, self._fields = version, "", fields
        known = {name: value for name, value in fields.items() if name in _TYPES}
        self.current = msgspec.structs.replace(self._settings, **known)
        self.on_change()

    async def _write(self, record: bytes) -> int:
        if self._is_stored:
            return await self._bucket.update(self._key, record, self.version)
        return await self._bucket.create(self._key, record)
