"""Sizes and durations as people read them."""

from urllib.error import URLError

import pytest

from agent import human


@pytest.mark.parametrize(
    ("count_bytes", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (1_572_864, "1.5 MiB"),
        (85 * 1024**3, "85.0 GiB"),
        (5 * 1024**5, "5120.0 TiB"),
    ],
)
def test_a_size_has_the_unit_that_suits_it(count_bytes: int, text: str) -> None:
    assert human.size(count_bytes) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.8125, "0.8125"),
        (9999.0, "9999"),
        (24_000.0, "24000"),
        (-1.5e6, "-1.5 M"),
        (46e9, "46 G"),
        (113.735e12, "113.7 T"),
    ],
)
def test_an_amount_has_the_unit_that_suits_it(value: float, text: str) -> None:
    assert human.amount(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0008, "0.8 ms"),
        (0, "0 s"),
        (0.34, "340 ms"),
        (1.0, "1.0 s"),
        (119.0, "119.0 s"),
        (210.0, "3.5 min"),
        (7560.0, "2.1 h"),
        (432_000.0, "5.0 d"),
    ],
)
def test_a_duration_has_the_unit_that_suits_it(seconds: float, text: str) -> None:
    assert human.duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("20 °C, Zürich, 日本", "20 °C, Zürich, 日本"),
        ("\x1b]0;pwn\x07", "\\x1b]0;pwn\\x07"),
        ("a\u202eb\x9bc", "a\\u202eb\\x9bc"),
        ("two\nlines", "two\\nlines"),
    ],
    ids=["text", "escape", "direction", "line"],
)
def test_a_stranger_cannot_command_the_terminal(text: str, shown: str) -> None:
    assert human.printable(text) == shown


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PermissionError(13, "Permission denied", "/state"), "Permission denied: /state"),
        (ConnectionRefusedError(111, "Connect call failed"), "Connect call failed"),
        (URLError(OSError(-2, "Name or service not known")), "Name or service not known"),
        (URLError("no host given"), "<urlopen error no host given>"),
        (TimeoutError(), "no answer in time"),
        (LookupError(), "LookupError"),
        (ValueError("not a number"), "not a number"),
    ],
    ids=["file", "socket", "wrapped", "not-wrapped", "time-out", "no-text", "other"],
)
def test_an_error_is_told_in_words_without_numbers(error: Exception, text: str) -> None:
    assert human.reason(error) == text
