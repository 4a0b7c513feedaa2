"""`ResourceAgent` and `CacheClient` for scripts and notebooks: the same calls, without `await`."""

import functools
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from agent.client import CacheClient, ResourceAgent
from agent.connected import Connected
from agent.loop_thread import LoopClosedError, LoopThread
from schemas.protocols import RequestError

P = ParamSpec("P")
T = TypeVar("T")
Client_co = TypeVar("Client_co", bound=Connected, covariant=True)

NOT_THERE = 503


class _Sync(Generic[Client_co]):
    """A client whose connection lives in a thread of its own.

    Usable from many threads, and where an event loop runs. Every call ends by the deadline that
    it has without this, and raises what it does there; a `RequestError` 503 once it is closed.
    """

    def __init__(self, client: Client_co, loop: LoopThread, *, owns_loop: bool = True) -> None:
        self._client = client
        self._loop = loop
        self._owns_loop = owns_loop

    def close(self) -> None:
        """Close the connection and end the thread; calls under way are given up."""
        if self._owns_loop:
            self._loop.close(self._client.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return self._loop.run(work)
        except LoopClosedError as error:
            raise RequestError(NOT_THERE, f"this client cannot ask: {error}") from None


def _connected(kind: type[Client_co], url: str | None, root: str) -> tuple[Client_co, LoopThread]:
    loop = LoopThread(kind.__name__)
    try:
        return loop.run(kind.connect(url, root=root)), loop
    except BaseException:
        loop.close(_nothing)
        raise


async def _nothing() -> None:
    """There is no connection to close."""


def _waiting(
    call: Callable[Concatenate[Client_co, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[_Sync[Client_co], P], T]:
    """`call` as a method that returns what it gives; with its name, parameters and docstring."""

    @functools.wraps(call)
    def wait(self: _Sync[Client_co], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(call(self._client, *args, **kwargs))

    return wait


class SyncResourceAgent(_Sync[ResourceAgent]):
    """Asks the fleet, as `ResourceAgent` does, and waits for each answer."""

    @classmethod
    def connect(cls, url: str | None = None, *, root: str = "fleet.v1") -> Self:
        """Connect as `ResourceAgent.connect`; use it in a `with`, or `close` it."""
        return cls(*_connected(ResourceAgent, url, root))

    gpu = _waiting(ResourceAgent.gpu)
    system = _waiting(ResourceAgent.system)
    get_gpu_metrics = _waiting(ResourceAgent.get_gpu_metrics)
    gpu_history = _waiting(ResourceAgent.gpu_history)
    engine_history = _waiting(ResourceAgent.engine_history)
    system_history = _waiting(ResourceAgent.system_history)
    cache_history = _waiting(ResourceAgent.cache_history)
    health = _waiting(ResourceAgent.health)

    analyze = _waiting(ResourceAgent.analyze)
    analyze_utilization = _waiting(ResourceAgent.analyze_utilization)
    get_waste = _waiting(ResourceAgent.get_waste)
    get_trends = _waiting(ResourceAgent.get_trends)
    get_opportunities = _waiting(ResourceAgent.get_opportunities)
    analysis_history = _waiting(ResourceAgent.analysis_history)
    get_report = _waiting(ResourceAgent.get_report)
    insights = _waiting(ResourceAgent.insights)

    get_scaling_recommendations = _waiting(ResourceAgent.get_scaling_recommendations)
    advice_history = _waiting(ResourceAgent.advice_history)
    get_consolidations = _waiting(ResourceAgent.get_consolidations)
    explain = _waiting(ResourceAgent.explain)
    approve = _waiting(ResourceAgent.approve)
    reject = _waiting(ResourceAgent.reject)
    execute_optimization = _waiting(ResourceAgent.execute_optimization)

    alerts = _waiting(ResourceAgent.alerts)
    alert_history = _waiting(ResourceAgent.alert_history)
    alert_rules = _waiting(ResourceAgent.alert_rules)
    set_alert_rule = _waiting(ResourceAgent.set_alert_rule)
    delete_alert_rule = _waiting(ResourceAgent.delete_alert_rule)
    reset_alert_rule = _waiting(ResourceAgent.reset_alert_rule)
    silences = _waiting(ResourceAgent.silences)
    silence = _waiting(ResourceAgent.silence)
    unsilence = _waiting(ResourceAgent.unsilence)

    lmcache_status = _waiting(ResourceAgent.lmcache_status)
    lmcache_metrics = _waiting(ResourceAgent.lmcache_metrics)
    lmcache_config = _waiting(ResourceAgent.lmcache_config)
    configure_lmcache = _waiting(ResourceAgent.configure_lmcache)
    optimize_lmcache = _waiting(ResourceAgent.optimize_lmcache)
    clear_lmcache = _waiting(ResourceAgent.clear_lmcache)


class SyncCacheClient(_Sync[CacheClient]):
    """One namespace of the cache, as `CacheClient` has it, without `open`: use `get_to`."""

    @classmethod
    def connect(cls, url: str | None = None, *, root: str = "fleet.v1") -> Self:
        """Connect as `CacheClient.connect`; use it in a `with`, or `close` it."""
        return cls(*_connected(CacheClient, url, root))

    def of(self, namespace: str, *, client: str | None = None) -> Self:
        """The same connection, another namespace, as `CacheClient.of`; ends with this one."""
        other = self._client.of(namespace, client=client)
        return type(self)(other, self._loop, owns_loop=False)

    @property
    def patient(self) -> bool:
        """Whether to wait where the cache is busy; else its 429 is raised."""
        return self._client.patient

    @patient.setter
    def patient(self, value: bool) -> None:
        self._client.patient = value

    @property
    def coalesce(self) -> bool:
        """Whether what threads ask for at once travels together, as `CacheClient.coalesce`."""
        return self._client.coalesce

    @coalesce.setter
    def coalesce(self, value: bool) -> None:
        self._client.coalesce = value

    def keys(self, prefix: str = "") -> list[str]:
        """The keys in RAM that begin with `prefix`, in no telling order."""

        async def all_of_them() -> list[str]:
            return [key async for key in self._client.keys(prefix)]

        return self._run(all_of_them())

    get = _waiting(CacheClient.get)
    get_into = _waiting(CacheClient.get_into)
    get_to = _waiting(CacheClient.get_to)
    get_many = _waiting(CacheClient.get_many)
    get_many_into = _waiting(CacheClient.get_many_into)
    put = _waiting(CacheClient.put)
    put_many = _waiting(CacheClient.put_many)
    delete = _waiting(CacheClient.delete)
    delete_tag = _waiting(CacheClient.delete_tag)
    exists = _waiting(CacheClient.exists)
    meta = _waiting(CacheClient.meta)
    match = _waiting(CacheClient.match)
    stats = _waiting(CacheClient.stats)
    warm = _waiting(CacheClient.warm)
