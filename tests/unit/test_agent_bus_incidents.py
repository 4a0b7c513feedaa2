"""What a connection remembers of its troubles, and how little of it a stranger can have logged."""

import time

import nats.errors
import pytest
import structlog

from agent.bus.incidents import MAX_LOGGED_KEYS, Incidents


def denied(subject: str) -> nats.errors.Error:
    return nats.errors.Error(f'nats: permissions violation for publish to "{subject}"')


def test_a_hint_is_given_for_the_denied_subject_alone() -> None:
    incidents = Incidents("test")

    incidents.take_error(denied("fleet.v1.api.gpu.metrics"))

    assert "denied it to this user" in incidents.permission_hint("fleet.v1.api.GPU.metrics")
    assert incidents.permission_hint("fleet.v1.api.gpu") == ""
    assert incidents.counters["permission_denied_total"] == 1


def test_who_waited_long_still_is_told_of_the_denial_at_its_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    incidents = Incidents("test")
    now = time.monotonic()
    incidents.take_error(denied("a"))

    monkeypatch.setattr(time, "monotonic", lambda: now + 60)

    assert "denied it to this user" in incidents.permission_hint("a", 60.0)
    assert incidents.permission_hint("a") == ""


def test_an_old_denial_explains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    incidents = Incidents("test")
    incidents.take_error(denied("a"))

    monkeypatch.setattr("agent.bus.incidents.PERMISSION_HINT_SECONDS", -1.0)

    assert incidents.permission_hint("a") == ""


def test_the_same_trouble_is_logged_again_after_its_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    incidents = Incidents("test")
    with structlog.testing.capture_logs() as logged:
        incidents.count_bad_message("metrics.>", ValueError("first"))
        incidents.count_bad_message("metrics.>", ValueError("second"))
        monkeypatch.setattr("agent.bus.incidents.LOG_AGAIN_SECONDS", 0.0)
        incidents.count_bad_message("metrics.>", ValueError("third"))

    assert [line["error"] for line in logged] == ["ValueError: first", "ValueError: third"]
    assert incidents.counters["bad_messages_total"] == 3


def test_made_up_subjects_cannot_flood_the_log() -> None:
    incidents = Incidents("test")
    with structlog.testing.capture_logs() as logged:
        for number in range(10 * MAX_LOGGED_KEYS):
            incidents.take_error(denied(f"made.up.{number}"))

    assert len(logged) == MAX_LOGGED_KEYS
    assert incidents.counters["permission_denied_total"] == 10 * MAX_LOGGED_KEYS


def test_a_long_error_is_cut_short_in_the_log() -> None:
    incidents = Incidents("test")
    with structlog.testing.capture_logs() as logged:
        incidents.count_bad_message("metrics.>", ValueError("x" * 1_000_000))

    assert len(logged[0]["error"]) == 300


def test_an_error_of_the_connection_is_logged_with_its_type() -> None:
    incidents = Incidents("test")
    with structlog.testing.capture_logs() as logged:
        for error in (OSError("gone"), OSError("again"), nats.errors.StaleConnectionError()):
            incidents.take_error(error)

    assert [line["error_type"] for line in logged] == ["OSError", "StaleConnectionError"]
    assert {line["event"] for line in logged} == {"bus_error"}
    assert not [line for line in logged if "subject" in line]


def test_an_error_without_words_is_named() -> None:
    incidents = Incidents("test")

    incidents.take_error(TimeoutError())

    assert incidents.last_error == "no answer in time"
