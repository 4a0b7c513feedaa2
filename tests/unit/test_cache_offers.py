"""Empty files for values whose size only the archive knows: how many, how large, and when again."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from cache.files import Files
from cache.manifest import ForeignAnswerError
from cache.offers import AT_ONCE, Offer, Offers
from cache.room import Room
from cache.settings import CacheSettings

MIB = 1024 * 1024
SECONDS = 2.0


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    made = Files(CacheSettings(same_host_folder=str(tmp_path)))
    yield made
    made.close()


def path_of(offer: Offer | None) -> str:
    assert offer is not None
    return unquote(offer.headers["Fleet-File"])


def test_so_many_are_made_at_once_within_half_of_the_room(files: Files) -> None:
    room = Room(16 * MIB)
    offers = Offers(files, room, SECONDS)
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(offers.offer(64 * MIB)) for _ in range(AT_ONCE + 1)]
        used_bytes = room.used_bytes

    assert [offer is not None for offer in made] == [True] * AT_ONCE + [False]
    assert {offer.headers["Fleet-Room"] for offer in made if offer} == {str(2 * MIB)}
    assert (used_bytes, room.used_bytes) == (8 * MIB, 0)


def test_none_is_made_where_the_room_is_taken(files: Files) -> None:
    room = Room(8 * MIB)
    assert room.take(8 * MIB - 1)

    with Offers(files, room, SECONDS).offer(64 * MIB) as offer:
        assert offer is None
    assert room.used_bytes == 8 * MIB - 1


def test_no_value_is_taken_that_the_cache_would_not_keep(files: Files) -> None:
    with Offers(files, Room(256 * MIB), SECONDS).offer(3 * MIB) as offer:
        assert offer is not None
        assert offer.headers["Fleet-Room"] == str(3 * MIB)


def test_none_is_made_where_the_answer_must_come_sooner_than_an_archiver_gives_up(
    files: Files,
) -> None:
    with Offers(files, Room(256 * MIB), 0.4).offer(64 * MIB) as offer:
        assert offer is None


@pytest.mark.parametrize(
    "settings",
    [{"same_host": False}, {"same_host_min_bytes": 600 * 1024}],
    ids=["no files", "not of all large values"],
)
def test_none_is_made_where_values_may_be_bytes(
    tmp_path: Path, settings: dict[str, bool | int]
) -> None:
    files = Files(CacheSettings(same_host_folder=str(tmp_path), **settings))  # type: ignore[arg-type]
    with Offers(files, Room(256 * MIB), SECONDS).offer(64 * MIB) as offer:
        assert offer is None
    files.close()


def test_a_file_that_stayed_empty_is_offered_again(files: Files) -> None:
    offers = Offers(files, Room(256 * MIB), SECONDS)
    paths = []
    for _ in range(2):
        with offers.offer(64 * MIB) as offer:
            paths.append(path_of(offer))

    assert paths[0] == paths[1]
    assert Path(paths[0]).exists()


def test_a_file_to_which_an_archiver_may_still_write_is_removed(files: Files) -> None:
    offers = Offers(files, Room(256 * MIB), SECONDS)
    paths = []

    def time_out() -> None:
        with offers.offer(64 * MIB) as offer:
            paths.append(path_of(offer))
            raise TimeoutError

    with pytest.raises(TimeoutError):
        time_out()

    assert not Path(paths[0]).exists()


def test_a_file_that_was_begun_and_not_finished_is_removed(files: Files) -> None:
    offers = Offers(files, Room(256 * MIB), SECONDS)
    with offers.offer(64 * MIB) as offer:
        path = path_of(offer)
        os.truncate(path, 5)
    del offer
    with offers.offer(64 * MIB) as another:
        other_path = path_of(another)

    assert other_path != path
    assert not Path(path).exists()


def test_what_was_written_is_the_value_from_then_on(files: Files) -> None:
    offers = Offers(files, Room(256 * MIB), SECONDS)
    with offers.offer(64 * MIB) as offer:
        assert offer is not None
        path = path_of(offer)
        Path(path).write_bytes(b"value")
        value = offer.take(5)

    assert (value.read(), value.path, len(value)) == (b"value", path, 5)
    assert Path(path).stat().st_mode & 0o777 == 0o400
    assert list(files.held) == [path]


def test_a_file_of_another_size_is_not_the_value(files: Files) -> None:
    offers = Offers(files, Room(256 * MIB), SECONDS)
    with offers.offer(64 * MIB) as offer:
        assert offer is not None
        Path(path_of(offer)).write_bytes(b"valu")
        with pytest.raises(ForeignAnswerError, match="4 bytes, not 5"):
            offer.take(5)
