"""What a page is about, told from the names on it; one may hold an engine and its cache."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from agent.collectors.engines.dcgm import DcgmReader
from agent.collectors.engines.exposition import Names, Page, PageError, parse_page
from agent.collectors.engines.inference import STARTED, EngineReader, Place
from agent.collectors.engines.lmcache import LmcacheReader
from agent.collectors.engines.sglang import SGLANG
from agent.collectors.engines.vllm import VLLM
from schemas.message import Message


class Reader(Protocol):
    """Reads what one kind of program says of itself."""

    @property
    def restarts(self) -> int:
        """How often it was seen to have started anew."""

    def wanted(self) -> frozenset[str]:
        """All names to look for on a page."""

    def missing(self, page: Page) -> dict[str, Names]:
        """Fields that are expected of it and not on this page, with the names looked for."""

    def read(self, page: Page, now_ns: int) -> Sequence[Message]:
        """Messages of one page; PageError where it cannot be."""


KINDS: Mapping[str, Callable[[Place], Reader]] = {
    "vllm": lambda place: EngineReader(VLLM, place),
    "sglang": lambda place: EngineReader(SGLANG, place),
    "lmcache": LmcacheReader,
    "dcgm-exporter": DcgmReader,
}


class PageReader:
    """Turns the pages of one target into messages. Blocking; called from one thread."""

    def __init__(self, place: Place) -> None:
        self.kinds: tuple[str, ...] = ()
        self.missing: dict[str, Names] = {}
        self._readers = {kind: make(place) for kind, make in KINDS.items()}
        self._names = {kind: one.wanted() - set(STARTED) for kind, one in self._readers.items()}
        self._wanted = frozenset(STARTED).union(*self._names.values())

    @property
    def restarts(self) -> int:
        """How often an engine was seen to have started anew."""
        return sum(reader.restarts for reader in self._readers.values())

    def read(self, body: bytes, now_ns: int, *, is_openmetrics: bool = False) -> list[Message]:
        """All messages of one page; `kinds` and `missing` say what it was.

        Raises:
            PageError: not a page of metrics, or of nothing we know.
        """
        page = parse_page(body, self._wanted, is_openmetrics=is_openmetrics)
        kinds = [kind for kind, names in self._names.items() if names & page.series.keys()]
        if not kinds:
            raise PageError(
                "no metrics of vLLM, SGLang, LMCache or dcgm-exporter on this page"
                + (" (is it empty?)" if not body.strip() else "")
            )
        messages: list[Message] = []
        missing: dict[str, Names] = {}
        for kind in kinds:
            names = self._names[kind] | set(STARTED)
            own = Page({name: of for name, of in page.series.items() if name in names})
            messages += self._readers[kind].read(own, now_ns)
            missing.update({f"{kind}.{f}": n for f, n in self._readers[kind].missing(own).items()})
        self.kinds, self.missing = tuple(kinds), missing
        return messages
