"""A double of the Kubernetes API: the `scale` of Deployments, with its ways to refuse."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web

SCALE = "/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"


class KubernetesDouble:
    """Answers as the API does; `next_answers` are given first, `answers` cleared makes it slow."""

    def __init__(self, **replicas: int) -> None:
        self.replicas = dict(replicas)
        self.version = 100
        self.token = "secret-token"
        self.may_patch = True
        self.padding_bytes = 0
        self.next_answers: deque[tuple[int, dict[str, str]]] = deque()
        self.seen: list[tuple[str, str, str, Any]] = []
        self.on_patch: Callable[[], None] = lambda: None
        self.after_patch: Callable[[], Awaitable[None]] | None = None
        self.answers = asyncio.Event()
        self.answers.set()
        self.url = ""

    async def _answer(self, request: web.Request) -> web.Response:
        body: Any = await request.json() if request.can_read_body else None
        self.seen.append((request.method, request.path, request.content_type, body))
        await self.answers.wait()
        if self.next_answers:
            status, headers = self.next_answers.popleft()
            return _status(status, "asked for by the test", headers)
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return _status(401, "Unauthorized")
        name = request.match_info["name"]
        if name not in self.replicas:
            return _status(404, f'deployments.apps "{name}" not found')
        if request.method == "PATCH":
            if not self.may_patch:
                return _status(403, f'cannot patch resource "deployments/scale" of "{name}"')
            self.on_patch()
            if body["metadata"]["resourceVersion"] != str(self.version):
                return _status(409, "the object has been modified")
            if body["spec"]["replicas"] > 1000:
                return _status(422, "spec.replicas: Invalid value")
            self.change(name, body["spec"]["replicas"])
            if self.after_patch is not None:
                await self.after_patch()
        return web.json_response(
            {
                "kind": "Scale",
                "apiVersion": "autoscaling/v1",
                "padding": "x" * self.padding_bytes,
                "metadata": {"name": name, "resourceVersion": str(self.version)},
                "spec": {"replicas": self.replicas[name]} if self.replicas[name] else {},
                "status": {"replicas": self.replicas[name], "selector": "app=x"},
            }
        )

    def change(self, name: str, replicas: int) -> None:
        """Somebody changes a Deployment."""
        self.replicas[name] = replicas
        self.version += 1

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Listen on a loopback port."""
        application = web.Application()
        application.router.add_route("*", SCALE, self._answer)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield
        finally:
            self.answers.set()
            await runner.cleanup()


def _status(code: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    body = {"kind": "Status", "status": "Failure", "message": message, "code": code}
    return web.json_response(body, status=code, headers=headers)
