"""Changes the replicas of a Deployment through the Kubernetes API's `scale`."""

import asyncio
import contextlib
import errno
import os
import ssl
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import msgspec
from msgspec import Meta

from agent.executors.settings import KubernetesSettings
from agent.executors.steps import is_reached, outdated
from agent.executors.target import ActionError
from agent.human import printable, reason
from schemas.message import UNDECODABLE
from schemas.scaling import Recommendation

TRIES = 3
MAX_WAIT_SECONDS = 5.0
BODY_BYTES = 256 * 1024
TEXT_CHARACTERS = 300
_HINTS = {
    401: "the token of executor.kubernetes.token_file is not accepted",
    403: "the token may not do that: it needs get and patch on deployments/scale there",
    404: "there is no such Deployment",
}


class _Metadata(msgspec.Struct):
    resourceVersion: str


class _Spec(msgspec.Struct):
    # A scale of 0 comes without the field.
    replicas: Annotated[int, Meta(ge=0)] = 0


class _Scale(msgspec.Struct):
    """`autoscaling/v1` Scale."""

    metadata: _Metadata
    spec: _Spec


class _Status(msgspec.Struct):
    """What the API says of an error."""

    message: str = ""


class KubernetesTarget:
    """The Deployments of the settings, by the API's `scale` subresource.

    A change is a merge patch that names the resourceVersion it was decided on: had somebody else
    changed the Deployment meanwhile it would have no effect. What is refused for being too much,
    or fails on the server, is tried three times.
    """

    def __init__(self, settings: KubernetesSettings) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None

    def refusal(self, pool: str) -> str:
        """Why this pool is not to be changed; empty: it may be."""
        if pool not in self._settings.deployments:
            return f"pool {pool} is not in executor.kubernetes.deployments"
        return ""

    def plan(self, advice: Recommendation) -> str:
        """Deployment and number."""
        deployment = self._settings.deployments[advice.pool]
        return f"would scale deployment {deployment} to {advice.replicas_to}"

    async def observe(self, pool: str) -> int | None:
        """`spec.replicas`: how many the Deployment asks for, its pods come and go later."""
        return (await self._read(pool)).spec.replicas

    async def scale(self, advice: Recommendation) -> str:
        """Patch `spec.replicas`, unless somebody else has changed it since, or does meanwhile."""
        deployment = self._settings.deployments[advice.pool]
        found = await self._read(advice.pool)
        before = found.spec.replicas
        if before == advice.replicas_to:
            return f"deployment {deployment} has {before} already"
        if is_reached(advice, before) or outdated(advice, before):
            raise ActionError(
                f"somebody else scaled deployment {deployment} meanwhile, to {before}",
                has_acted=False,
            )
        for _ in range(TRIES):
            changed = await self._patch(advice, found)
            if changed is not None:
                return f"scaled deployment {deployment} from {before} to {changed.spec.replicas}"
            # Its status changes its resourceVersion too, so a conflict alone says little.
            found = await self._read(advice.pool)
            if found.spec.replicas == advice.replicas_to:
                return f"deployment {deployment} has {advice.replicas_to} now"
            if found.spec.replicas != before:
                raise ActionError(
                    f"somebody else scaled deployment {deployment} meanwhile, from {before} to "
                    f"{found.spec.replicas}",
                    has_acted=False,
                )
        raise ActionError(
            f"deployment {deployment} changes all the time: {TRIES} conflicts", has_acted=False
        )

    async def _patch(self, advice: Recommendation, found: _Scale) -> _Scale | None:
        """The scale after the change; None: somebody has changed the Deployment since `found`.

        Where the answer is lost, the change may have been made all the same: that is looked up.
        """
        patch = {
            "metadata": {"resourceVersion": found.metadata.resourceVersion},
            "spec": {"replicas": advice.replicas_to},
        }
        try:
            return await self._call(advice.pool, patch)
        except ActionError as error:
            if error.has_acted:
                with contextlib.suppress(ActionError):
                    found = await self._read(advice.pool)
                    if found.spec.replicas == advice.replicas_to:
                        return found
            raise

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _read(self, pool: str) -> _Scale:
        found = await self._call(pool, None)
        assert found is not None  # noqa: S101 - only a patch can conflict
        return found

    async def _call(self, pool: str, patch: dict[str, Any] | None) -> _Scale | None:
        """The scale after this call; None: the patch was for another resourceVersion."""
        wait_seconds = 0.25
        for attempt in range(1, TRIES + 1):
            status, retry_after, body = await self._send(pool, patch)
            if status == 200:
                try:
                    return msgspec.json.decode(body, type=_Scale)
                except UNDECODABLE as error:
                    text = f"the API does not answer a scale: {error}"
                    raise ActionError(text, has_acted=patch is not None) from None
            if status == 409 and patch is not None:
                return None
            if (status == 429 or status >= 500) and attempt < TRIES:
                pause = wait_seconds if retry_after is None else retry_after
                await asyncio.sleep(min(MAX_WAIT_SECONDS, pause))
                wait_seconds *= 2
                continue
            may_have = patch is not None and status >= 500
            raise ActionError(_explain(status, body), has_acted=may_have)
        raise AssertionError("unreachable")  # pragma: no cover

    async def _send(
        self, pool: str, patch: dict[str, Any] | None
    ) -> tuple[int, float | None, bytes]:
        """Status, `Retry-After` and body of one call."""
        namespace, _, name = self._settings.deployments[pool].partition("/")
        address = (
            f"{self._settings.server.rstrip('/')}/apis/apps/v1/namespaces/{namespace}"
            f"/deployments/{name}/scale"
        )
        headers = {"Accept": "application/json", "User-Agent": "resource-agent"}
        headers["Authorization"] = f"Bearer {await asyncio.to_thread(self._token)}"
        if patch is not None:
            headers["Content-Type"] = "application/merge-patch+json"
        session = await self._connected()
        try:
            async with (
                asyncio.timeout(self._settings.call_seconds),
                session.request(
                    "GET" if patch is None else "PATCH",
                    address,
                    headers=headers,
                    data=None if patch is None else msgspec.json.encode(patch),
                    allow_redirects=False,
                ) as response,
            ):
                body = bytearray()
                async for chunk in response.content.iter_chunked(65536):
                    body += chunk
                    if len(body) > BODY_BYTES:
                        text = f"the API answers more than {BODY_BYTES} bytes"
                        raise ActionError(text, has_acted=patch is not None)
                retry_after = _seconds(response.headers.get("Retry-After"))
                return response.status, retry_after, bytes(body)
        except TimeoutError:
            raise ActionError(
                f"the API did not answer within {self._settings.call_seconds:g} s",
                has_acted=patch is not None,
            ) from None
        except aiohttp.ClientConnectorCertificateError:
            raise ActionError(
                "the API's certificate is not of executor.kubernetes.ca_file", has_acted=False
            ) from None
        except aiohttp.ClientConnectorError as error:
            why = os.strerror(error.os_error.errno or errno.EHOSTUNREACH)
            raise ActionError(f"cannot connect to the API: {why}", has_acted=False) from None
        except aiohttp.ClientError as error:
            text = f"no answer of the API: {type(error).__name__}"
            raise ActionError(text, has_acted=patch is not None) from None

    def _token(self) -> str:
        """Read for every call: Kubernetes renews the file."""
        path = self._settings.token_file
        try:
            text = Path(path).read_bytes()[:65536].decode("ascii", "replace").strip()
        except OSError as error:
            text = f"cannot read token_file {path}: {reason(error)}"
            raise ActionError(text, has_acted=False) from None
        if not text or not all("!" <= character <= "~" for character in text):
            raise ActionError(f"token_file {path} holds no token", has_acted=False)
        return text

    async def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            tls = await asyncio.to_thread(self._tls)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=tls, force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
            )
        return self._session

    def _tls(self) -> ssl.SSLContext | bool:
        path = self._settings.ca_file
        if not self._settings.server.startswith("https:"):
            return True
        try:
            return ssl.create_default_context(cafile=path or None)
        except OSError as error:  # ssl.SSLError is one
            why = "no certificate in it" if isinstance(error, ssl.SSLError) else reason(error)
            raise ActionError(f"cannot use ca_file {path}: {why}", has_acted=False) from None


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isascii() and text.isdigit() else None


def _explain(status: int, body: bytes) -> str:
    said = ""
    with contextlib.suppress(*UNDECODABLE):
        said = printable(msgspec.json.decode(body, type=_Status).message[:TEXT_CHARACTERS])
    words = "; ".join(text for text in (_HINTS.get(status, ""), said) if text)
    return f"the API answers {status}" + (f": {words}" if words else "")
