"""The breaker of the language model."""

from handlers.insights.breaker import LONGEST_PAUSE_SECONDS, Breaker


def test_each_failure_doubles_the_pause_and_success_ends_it() -> None:
    breaker = Breaker()
    pauses = []
    for _ in range(10):
        breaker.failed(1000, "slow", retry_after_seconds=None, is_transient=True)
        pauses.append(breaker.open_seconds(1000))

    assert pauses == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    assert breaker.open_seconds(1000 + 3600) == 0
    assert breaker.reason == "slow"

    breaker.succeeded()

    assert breaker.open_seconds(1000) == 0
    assert breaker.reason == ""


def test_an_endpoint_that_says_when_is_not_asked_before() -> None:
    breaker = Breaker()

    breaker.failed(0, "429", retry_after_seconds=7200, is_transient=True)

    assert breaker.open_seconds(7199) == 1


def test_what_asking_again_cannot_change_waits_longest() -> None:
    breaker = Breaker()

    breaker.failed(0, "401", retry_after_seconds=None, is_transient=False)

    assert breaker.open_seconds(0) == LONGEST_PAUSE_SECONDS
