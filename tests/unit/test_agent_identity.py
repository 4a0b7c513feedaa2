"""Who this process is, and for whom it runs."""

import os

import pytest

from agent.identity import user_name


@pytest.mark.parametrize("error", [KeyError("uid"), OSError("no name")], ids=["3.11", "3.13"])
def test_a_user_without_a_name_is_a_number(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def nameless() -> str:
        raise error

    monkeypatch.setattr("getpass.getuser", nameless)

    assert user_name() == str(os.getuid())
