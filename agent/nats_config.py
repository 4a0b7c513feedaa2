"""The configuration file of the private nats-server: who may connect, and do what."""

import json
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

SYNC_ALWAYS_SINCE = (2, 10, 0)
LOG_FILES_LIMIT_SINCE = (2, 11, 0)

GUEST_MAY_ASK = (
    "api.health.>",
    "api.gpu.>",
    "api.system.>",
    "api.analysis.>",
    "cache.default.get",
    "cache.default.put",
    "cache.default.exists",
    "cache.default.meta",
    "cache.default.stats",
)
# Nothing of $JS.API: the server sends its answers to whatever reply subject the asker names,
# streams and buckets included.
GUEST_MAY_ASK_NATS = ("$SRV.>",)
GUEST_MAY_NOT_READ = ("evicted.>", "evicted_part.>", "cache.>", "dead.>")  # users' cached values


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The private nats-server that `resource-agent up` runs."""

    guest: Annotated[
        Literal["off", "read", "all"],
        Meta(
            description="what a local client may do that connects without a password: nothing, "
            "read events and ask harmless endpoints, or everything"
        ),
    ] = "read"
    preferred_port: Annotated[
        int,
        Meta(ge=1, le=65535, description="port on 127.0.0.1; another is taken where it is in use"),
    ] = 4222
    max_payload_bytes: Annotated[
        int, Meta(ge=65536, le=8388608, description="largest message, headers included")
    ] = 1048576
    max_file_store_bytes: Annotated[
        int,
        Meta(ge=0, description="room for all streams on disk; 0 = a quarter of the free disk"),
    ] = 0
    sync_always: Annotated[
        bool,
        Meta(
            description="write each stored message through to the disk before it is acknowledged "
            "(survives a power cut, costs throughput; needs nats-server 2.10)"
        ),
    ] = False


class ServerTooOldError(Exception):
    """A setting asks for what this nats-server cannot do."""


def config_text(
    settings: ServerSettings,
    *,
    version: tuple[int, int, int],
    server_name: str,
    port: int,
    password: str,
    root: str,
    store_dir: str,
    log_file: str,
    max_file_store_bytes: int,
) -> str:
    """Return the configuration for a server of this version.

    User `local` has all rights. A client without a password is user `guest`, unless that
    is switched off.

    Args:
        settings: The user's wishes.
        version: What the binary says of itself: 2.9 refuses keys that it does not know.
        server_name: How the server calls itself in its greeting.
        port: Port on 127.0.0.1.
        password: Password of user `local`; letters and digits, since nats-server takes
            one that begins with `$2a$` for a hash.
        root: Subject root, such as `fleet.v1`.
        store_dir: Folder of the streams.
        log_file: Where the server writes its log.
        max_file_store_bytes: Room for all streams; the server refuses more.

    Raises:
        ServerTooOldError: `sync_always` with a server before 2.10.
    """
    if settings.sync_always and version < SYNC_ALWAYS_SINCE:
        found = ".".join(map(str, version))
        raise ServerTooOldError(f"sync_always needs nats-server 2.10 or newer, this is {found}")
    return f"""\
server_name: {_quoted(server_name)}
listen: "127.0.0.1:{port}"
max_payload: {settings.max_payload_bytes}
# A client that hangs leaves its queue groups after a minute, not after six.
ping_interval: "20s"
ping_max: 2
log_file: {_quoted(log_file)}
logfile_size_limit: 8MB
{"logfile_max_num: 3" if version >= LOG_FILES_LIMIT_SINCE else ""}
jetstream {{
  store_dir: {_quoted(store_dir)}
  max_file_store: {max_file_store_bytes}
  {"sync_interval: always" if settings.sync_always else ""}
}}
{"" if settings.guest == "off" else "no_auth_user: guest"}
authorization {{
  users: [
    {{ user: local, password: {_quoted(password)} }}
    {_guest(settings.guest, root)}
  ]
}}
"""


def _guest(guest: str, root: str) -> str:
    if guest == "off":
        return ""
    if guest == "all":
        return "{ user: guest }"
    may_publish = (*(f"{root}.{subject}" for subject in GUEST_MAY_ASK), *GUEST_MAY_ASK_NATS)
    may_subscribe = (f"{root}.>", "_INBOX.>")
    may_not_subscribe = (
        *(f"{root}.{subject}" for subject in GUEST_MAY_NOT_READ),
        # "subject queue": in no queue group, where a guest would take requests away
        f"{root}.> >",
    )
    return f"""{{ user: guest, permissions: {{
      publish: {{ allow: {_list(may_publish)} }}
      subscribe: {{ allow: {_list(may_subscribe)}, deny: {_list(may_not_subscribe)} }}
    }} }}"""


def _list(subjects: Iterable[str]) -> str:
    return f"[{', '.join(map(_quoted, subjects))}]"


def _quoted(text: str) -> str:
    """nats-server's strings know the escapes of JSON that can occur here."""
    return json.dumps(text, ensure_ascii=False)
