import asyncio

from handlers.queries.thinning import fitting, gently, shared_out, thinned


def test_each_series_keeps_its_first_its_last_and_its_share() -> None:
    kept = shared_out({"a": range(101), "b": range(3), "c": range(11)}, 9)

    assert {name: list(items) for name, items in kept.items()} == {
        "a": [0, 50, 100],
        "b": [0, 1, 2],
        "c": [0, 5, 10],
    }


def test_the_order_of_what_is_left_stays() -> None:
    items = [(name, number) for number in range(10) for name in "ab"]

    kept = thinned(items, 4, lambda item: item[0])

    assert kept == [("a", 0), ("b", 0), ("a", 9), ("b", 9)]


async def test_others_have_their_turn_while_much_is_worked_on() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    done = await gently(range(2_000), lambda number: -number)
    task.cancel()

    assert done == [-number for number in range(2_000)]
    assert turns >= 10


async def test_rows_are_thinned_to_the_bytes_of_an_answer() -> None:
    rows = [f"{number:020}" for number in range(1_000)]

    assert await fitting(rows, len, 23 * 1_000) == rows
    kept = await fitting(rows, len, 23 * 100)

    assert 90 <= len(kept) <= 100
    assert (kept[0], kept[-1]) == (rows[0], rows[-1])
    assert await fitting(rows, len, 10) == []
