import pytest

from agent.nats_server.config import ServerSettings, ServerTooOldError, config_text


def text_for(settings: ServerSettings, version: tuple[int, int, int] = (2, 9, 10)) -> str:
    return config_text(
        settings,
        version=version,
        server_name="private",
        port=4222,
        password="5ecret",
        root="acme.v1",
        store_dir='/var/with "quotes"',
        log_file="/var/log",
        max_file_store_bytes=1000,
    )


def test_writes_what_it_was_given() -> None:
    text = text_for(ServerSettings(max_payload_bytes=70_000))

    assert 'listen: "127.0.0.1:4222"' in text
    assert "max_file_store: 1000" in text
    assert "max_payload: 70000" in text
    assert r'store_dir: "/var/with \"quotes\""' in text
    assert '"acme.v1.api.health.>"' in text


def test_writes_no_key_that_server_2_9_refuses() -> None:
    text = text_for(ServerSettings(), version=(2, 9, 10))

    assert "logfile_max_num" not in text
    assert "sync_interval" not in text


def test_syncs_always_where_asked_and_possible() -> None:
    text = text_for(ServerSettings(sync_always=True), version=(2, 10, 0))

    assert "sync_interval: always" in text


def test_refuses_to_promise_a_sync_that_the_server_cannot_do() -> None:
    with pytest.raises(ServerTooOldError, match=r"needs nats-server 2\.10.*this is 2\.9\.25"):
        text_for(ServerSettings(sync_always=True), version=(2, 9, 25))


@pytest.mark.parametrize(
    ("version", "heard"),
    [
        pytest.param((2, 14, 4), '"acme.v1.metrics.>"', id="named one by one"),
        pytest.param((2, 14, 5), '"acme.v1.>"', id="the whole root but"),
    ],
)
def test_guests_hear_the_whole_root_where_the_server_denies_reliably(
    version: tuple[int, int, int], heard: str
) -> None:
    text = text_for(ServerSettings(), version=version)

    assert {'"acme.v1.metrics.>"', '"acme.v1.>"'} & set(text.split()) == {heard}
    assert ('"acme.v1.evicted.>"' in text) == (heard == '"acme.v1.>"')
