"""Slots that are fed together: each message goes to those alone that own a key of it. Pure."""

from collections.abc import Iterator, Sequence
from typing import Generic, TypeAlias, TypeVar

from handlers.slots import Hearer, Slot
from schemas.message import Message
from schemas.protocols import Emit, Moment

OwnerT = TypeVar("OwnerT")
Route: TypeAlias = Sequence[tuple[OwnerT, Slot, Sequence[Hearer]]]

MAX_ROUTES = 1 << 17
"""For so many nodes and pools, by the kind of message, it is remembered who hears them."""


class SlotGroup(Generic[OwnerT]):
    """Slots that stand at the same place of the stream, each with whom it belongs to.

    Three of eight slots own a key of a message as a rule, and only those are fed it. The others
    lose nothing: a tick is due twice a second, and the message before which it is goes to all, by
    `Slot.feed`. So a slot knows within half a second how far the stream has come.
    """

    def __init__(self) -> None:
        self._members: dict[int, tuple[OwnerT, Slot]] = {}
        self._routes: dict[tuple[type[Message], str | None, str | None], Route[OwnerT]] = {}
        self._due_ns = 0

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[OwnerT]:
        """The owners of now, whoever joins or leaves meanwhile."""
        return iter([owner for owner, _ in self._members.values()])

    def join(self, owner: OwnerT, slot: Slot) -> None:
        """Feed this slot, too."""
        self._members[slot.index] = (owner, slot)
        self._routes.clear()
        self._due_ns = 0

    def leave(self, slot: Slot) -> None:
        """Feed it no more; one that is not here is fine."""
        _, member = self._members.get(slot.index, (None, None))
        if member is slot:
            del self._members[slot.index]
            self._routes.clear()

    def is_due(self, ns: int) -> bool:
        """Whether a message of stream time `ns` is to be fed to each slot by `Slot.feed`."""
        if ns >= self._due_ns:  # what it was when it was last looked up; it only grows
            slots = (slot for _, slot in self._members.values())
            self._due_ns = min((slot.next_tick_ns for slot in slots), default=ns + 1)
        return ns >= self._due_ns

    def feed(self, message: Message, now: Moment) -> Sequence[tuple[OwnerT, Sequence[Emit]]]:
        """A message before which no tick is due, and what the slots' handlers say to it."""
        key = (type(message), getattr(message, "node", None), getattr(message, "pool", None))
        route = self._routes.get(key)
        if route is None:
            route = self._route(message)
            if len(self._routes) >= MAX_ROUTES:
                self._routes.clear()
            self._routes[key] = route
        said: list[tuple[OwnerT, Sequence[Emit]]] = []
        for owner, slot, hearers in route:
            emits = slot.hear(message, now, hearers)
            if emits:  # seldom
                said.append((owner, emits))
        return said

    def _route(self, message: Message) -> Route[OwnerT]:
        members = self._members.values()
        routes = ((owner, slot, slot.hearers(message)) for owner, slot in members)
        return tuple(one for one in routes if one[2])
