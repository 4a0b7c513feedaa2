"""What the archive may hold, and which of its versions may be believed."""

from cache.archived import GROWTH, ArchivedKeys, key_hash

V1, V2, V3 = "000000000001-0000000001", "000000000001-0000000002", "000000000001-0000000003"


def synced(*keys: str) -> ArchivedKeys:
    archived = ArchivedKeys()
    archived.begin_sync((), ())
    archived.finish_sync(key_hash(key) for key in keys)
    return archived


def test_before_the_first_sync_any_key_may_be_archived() -> None:
    archived = ArchivedKeys()

    assert archived.may_hold("anything")
    assert archived.needs_sync


def test_after_a_sync_only_listed_and_evicted_keys_may_be_archived() -> None:
    archived = synced("listed")

    archived.note_eviction("evicted")

    assert archived.may_hold("listed")
    assert archived.may_hold("evicted")
    assert not archived.may_hold("new")
    assert not archived.needs_sync


def test_an_older_version_is_refused_until_its_tombstone_is_confirmed() -> None:
    archived = synced("key")

    archived.note_tombstone("key", V2)
    while_unconfirmed = [archived.allows("key", version) for version in (V1, V2, V3)]
    archived.confirm("key", V1, tombstone=True)
    after_an_older_one = archived.allows("key", V1)
    archived.confirm("key", V2, tombstone=True)

    assert while_unconfirmed == [False, True, True]
    assert not after_an_older_one
    assert archived.allows("key", V1)
    assert archived.unconfirmed == 0


def test_a_confirmed_tombstone_says_that_the_archive_has_nothing_left() -> None:
    archived = synced("key")

    archived.note_tombstone("key", V2)
    archived.confirm("key", V2, tombstone=True)

    assert not archived.may_hold("key")


def test_a_tombstone_says_nothing_about_what_was_evicted_after_it() -> None:
    archived = synced("key")

    archived.note_tombstone("key", V2)
    archived.note_eviction("key")
    archived.confirm("key", V2, tombstone=True)

    assert archived.may_hold("key")


def test_a_stored_value_of_the_tombstones_version_confirms_it_and_stays_known() -> None:
    archived = synced("key")

    archived.note_tombstone("key", V2)
    archived.note_eviction("key")
    archived.confirm("key", V2, tombstone=False)

    assert archived.unconfirmed == 0
    assert archived.may_hold("key")


def test_a_sync_forgets_what_the_archive_forgot_but_not_what_is_on_its_way() -> None:
    archived = synced("expired in the archive", "still listed")

    archived.note_eviction("in the outbox")
    archived.begin_sync(["in the outbox"], ())
    archived.note_eviction("evicted meanwhile")
    archived.finish_sync([key_hash("still listed")])

    held = ["still listed", "in the outbox", "evicted meanwhile"]
    assert all(archived.may_hold(key) for key in held)
    assert not archived.may_hold("expired in the archive")


def test_a_sync_confirms_the_tombstones_that_the_stream_had_when_it_began() -> None:
    archived = synced("a", "b", "c")

    archived.note_tombstone("a", V1)
    archived.note_tombstone("b", V1)
    archived.note_tombstone("c", V1)
    archived.begin_sync((), {"b"})
    archived.note_tombstone("c", V2)
    archived.finish_sync([])

    assert archived.allows("a", "0")
    assert not archived.allows("b", "0"), "it still waited in the outbox"
    assert not archived.allows("c", V1), "a newer one was written meanwhile"


def test_a_sync_becomes_due_when_the_keys_have_outgrown_the_last_list() -> None:
    archived = synced()

    for number in range(GROWTH):
        archived.note_eviction(str(number))
    before = archived.needs_sync
    archived.note_eviction("one more")

    assert not before
    assert archived.needs_sync


def test_a_new_generation_leaves_everything_behind() -> None:
    archived = ArchivedKeys()
    archived.note_eviction("key")
    archived.note_tombstone("key", V2)

    archived.forget()

    assert not archived.may_hold("key")
    assert archived.allows("key", V1)
    assert archived.caught_up


def test_the_tombstone_of_a_tag_refuses_older_versions_with_the_tag_until_it_is_confirmed() -> None:
    archived = synced("key")

    archived.note_tombstone(("t",), V2)
    tagged = [archived.allows("key", version, ("s", "t")) for version in (V1, V2, V3)]
    others = archived.allows("key", V1, ("s",)), archived.allows("t", V1)
    archived.confirm(("t",), V2, tombstone=True)

    assert tagged == [False, True, True]
    assert others == (True, True)
    assert archived.allows("key", V1, ("t",))
    assert archived.may_hold("key"), "which keys had the tag is not known here"


def test_a_sync_settles_the_tombstone_of_a_tag_only_if_the_stream_had_it() -> None:
    archived = synced("key")
    archived.note_tombstone(("sent",), V2)
    archived.note_tombstone(("waits",), V2)

    archived.begin_sync((), {("waits",)})
    archived.finish_sync(())

    assert archived.allows("key", V1, ("sent",))
    assert not archived.allows("key", V1, ("waits",))
