"""Requests: one answer, or all that come in a while, with each failure told apart."""

import asyncio
import math
from collections.abc import Mapping

import nats.errors
from nats.aio.msg import Msg

from agent.bus.cancellation import heed
from agent.bus.client import ConnectionLostError, DeniedError
from agent.bus.errors import BusError, raised_as
from agent.bus.publishing import PublishingConnection
from agent.human import reason
from schemas.protocols import Answer, RequestError, TooLargeError


class RequestingConnection(PublishingConnection):
    """A connection that implements Requester, too."""

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        timeout_seconds: float,
    ) -> Answer:
        """Ask `subject` (below the root); an error answer is raised as RequestError."""
        return await self.request_absolute(
            self.names.absolute(subject), payload, headers, timeout_seconds=timeout_seconds
        )

    async def request_absolute(
        self,
        subject: str,
        payload: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        timeout_seconds: float,
    ) -> Answer:
        """Like `request`, for a subject outside the root (`$SRV.PING`)."""
        try:
            self._refuse_too_large(subject, payload, headers)
        except TooLargeError as error:
            raise RequestError(413, str(error)) from None
        try:
            answer = await self._client.ask(subject, payload, headers or {}, timeout_seconds)
        except nats.errors.NoRespondersError:
            raise RequestError(503, f"nobody serves {subject}") from None
        except DeniedError as error:
            raise RequestError(
                403,
                f"{subject}: the server denied it to this user ({reason(error)}); give this user "
                "that right in the server's configuration, or log in as another one",
            ) from None
        except ConnectionLostError as error:
            raise RequestError(408, f"{subject}: {reason(error)}") from error
        except nats.errors.TimeoutError:
            hint = self._incidents.permission_hint(subject, timeout_seconds)
            raise RequestError(
                408, f"no answer from {subject} within {round(timeout_seconds, 3):g} s{hint}"
            ) from None
        except (nats.errors.Error, OSError) as error:
            raise RequestError(503, f"{subject}: {reason(error)}") from error
        text = answer.headers.get("Nats-Service-Error")
        if text is not None:
            code = answer.headers.get("Nats-Service-Error-Code", "500")
            raise RequestError(
                int(code) if code.isdigit() else 500,
                text,
                retry_after_seconds=_seconds(answer.headers.get("Fleet-Retry-After")),
            )
        return answer

    async def gather(
        self, subject: str, *, wait_seconds: float, payload: bytes = b""
    ) -> list[Answer]:
        """All answers to one request on an absolute subject that arrive within `wait_seconds`.

        Raises:
            BusError: the connection is closed, or the subject is not one.
        """
        inbox = self._client.new_inbox()
        answers: list[Answer] = []

        async def collect(message: Msg) -> None:
            if (message.headers or {}).get("Status") != "503":
                answers.append(Answer(message.data, message.headers or {}))

        with raised_as(BusError, f"cannot ask {subject}"):
            subscription = await self._client.subscribe(inbox, cb=collect)
            try:
                await heed(self._client.publish(subject, payload, reply=inbox))
                await asyncio.sleep(wait_seconds)
            finally:
                await subscription.unsubscribe()
        return answers


def _seconds(text: str | None) -> float | None:
    try:
        seconds = float(text or "nan")
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None
