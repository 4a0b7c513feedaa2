"""What health says of the store, of what waits and of what died; each as it was last seen."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from archive.dead_letters import STREAM as DEAD_STREAM
from archive.dead_letters import SUBJECT as DEAD_SUBJECT
from archive.lifecycle import LifecycleReport
from archive.settings import ArchiveSettings
from archive.store import ObjectStore, StoreError
from schemas.lifecycle import Component, ComponentState
from schemas.protocols import Clock, LetterStream, PublishError
from schemas.units import instant

log = structlog.get_logger()

LIFECYCLE_SECONDS = 3600.0
"""Between two looks at the bucket's rules, which others may change."""
LIFECYCLE_AGAIN_SECONDS = 60.0
"""The same while something is wrong with them: who grants a right looks whether that helped."""


class Condition:
    """Looks at the parts that an archiver needs, and remembers what it saw.

    `trouble` gives what the archiver itself met of the store, empty where nothing; `pending` how
    many evictions wait, None: not known; `queue_trouble` why none come; `unusable` how many can be
    neither archived nor put aside.
    """

    def __init__(
        self,
        store: ObjectStore,
        letters: LetterStream,
        settings: ArchiveSettings,
        clock: Clock,
        *,
        trouble: Callable[[], str],
        pending: Callable[[], Awaitable[int | None]],
        queue_trouble: Callable[[], str],
        unusable: Callable[[], int],
    ) -> None:
        self._store = store
        self._letters = letters
        self._settings = settings
        self._clock = clock
        self._trouble = trouble
        self._pending = pending
        self._queue_trouble = queue_trouble
        self._unusable = unusable
        self._seen: list[Component] = []
        self._lifecycle: list[Component] = []
        self._failing_since_ns: int | None = None

    def components(self, not_begun: str = "") -> list[Component]:
        """Store and backlog, where there are any dead letters, and the bucket's rules.

        `not_begun`: why this archiver cannot begin to work on the store, told before the next look.
        """
        known = [*self._seen, *self._lifecycle]
        if not_begun and not any(one.name == "store" and one.state == "failed" for one in known):
            others = [one for one in known if one.name != "store"]
            return [self._of_store(not_begun, ""), *others]
        return known

    def component(self, name: str, state: ComponentState, text: str) -> Component:
        """One part, as seen now."""
        return Component(name=name, state=state, text=text, probed_at=instant(self._clock()))

    async def look(self) -> None:
        """See how store, backlog and dead letters are; takes as long as the store's answer."""
        trouble = self._trouble()
        room = ""
        try:
            room = await self._store.probe()
        except StoreError as error:
            trouble = str(error)
        self._seen = [
            self._of_store(trouble, room),
            await self._of_backlog(),
            *await self._of_dead_letters(),
        ]

    def _of_store(self, trouble: str, room: str) -> Component:
        if not trouble:
            self._failing_since_ns = None
            return self.component("store", "ok", room)
        if self._failing_since_ns is None:
            self._failing_since_ns = self._clock()
        since = f"{instant(self._failing_since_ns):%F %T}Z"
        return self.component("store", "failed", f"{trouble} (since {since})")

    async def _of_backlog(self) -> Component:
        pending = await self._pending()
        trouble = self._queue_trouble()
        if pending is None:
            trouble = trouble or "the eviction stream does not answer"
        if trouble:
            return self.component("backlog", "failed", trouble)
        text = f"{pending} evictions wait"
        unusable = self._unusable()
        if not unusable:
            return self.component("backlog", "ok", text)
        return self.component(
            "backlog",
            "degraded",
            f"{text}; {unusable} of them cannot be archived, and do not get into FLEET_DEAD: is it "
            "full? `resource-agent archive dead` says what is in it, and drops it",
        )

    async def _of_dead_letters(self) -> list[Component]:
        """Nothing where there is none, or the server does not tell: the backlog says that."""
        try:
            count = await self._letters.count(DEAD_STREAM, DEAD_SUBJECT)
        except (PublishError, TimeoutError):
            return []
        if not count:
            return []
        text = (
            f"{count} evictions could not be archived: `resource-agent archive dead` says why, "
            "sends them back or drops them"
        )
        return [self.component("dead_letters", "degraded", text)]

    async def keep_lifecycle(self) -> None:
        """Have our rules on the bucket, at once and again and again; returns where there is none.

        Cancelled, or returned: `forget_lifecycle`.
        """
        while True:
            pause_seconds = LIFECYCLE_SECONDS
            try:
                report = await self._store.install_lifecycle()
            except StoreError as error:
                pause_seconds = self._settings.retry_max_seconds
                report = LifecycleReport("degraded", str(error))
            else:
                if report is not None and report.state == "degraded":
                    pause_seconds = LIFECYCLE_AGAIN_SECONDS
            if report is None:
                return
            component = self.component("lifecycle", report.state, report.text)
            if [component.text] != [old.text for old in self._lifecycle]:
                say = log.warning if report.state == "degraded" else log.info
                say("archive_lifecycle", state=report.state, text=report.text)
            self._lifecycle = [component]
            await asyncio.sleep(pause_seconds)

    def forget_lifecycle(self) -> None:
        """Another archiver looks after the rules now."""
        self._lifecycle = []
