from pathlib import Path

import pytest

from agent.collectors.mounts import Mount, MountTable

# proc(5)'s example, a mount without and one with several optional fields, and awkward names.
TABLE = r"""36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
22 27 0:21 / /proc ro,relatime - proc proc rw
41 27 0:39 / /srv/my\040models\134 rw shared:7 master:1 - nfs4 nas:/m\011x rw
42 27 0:40 / /srv/empty rw -  none rw
"""


def table(path: Path, content: str) -> MountTable:
    path.write_text(content)
    return MountTable(path)


def test_a_line_gives_device_mount_point_type_number_and_options(tmp_path: Path) -> None:
    mounts = table(tmp_path / "mountinfo", TABLE).read()

    assert mounts[0] == Mount(
        device="/dev/root",
        mountpoint="/mnt2",
        fstype="ext3",
        number="98:0",
        inside="/mnt1",
        options=frozenset({"rw", "noatime", "errors=continue"}),
    )
    assert (mounts[1].fstype, mounts[1].inside, "ro" in mounts[1].options) == ("proc", "/", True)


def test_blanks_tabs_and_backslashes_in_names_are_what_they_were(tmp_path: Path) -> None:
    mount = table(tmp_path / "mountinfo", TABLE).read()[2]

    assert (mount.mountpoint, mount.device) == ("/srv/my models\\", "nas:/m\tx")


def test_an_unchanged_table_is_parsed_once_and_a_changed_one_again(tmp_path: Path) -> None:
    mounts = table(tmp_path / "mountinfo", TABLE)
    first, second = mounts.read(), mounts.read()
    (tmp_path / "mountinfo").write_text(TABLE.splitlines()[0])

    third = mounts.read()

    assert second is first
    assert [mount.mountpoint for mount in third] == ["/mnt2"]


@pytest.mark.parametrize("line", ["rubbish", "36 35 98:0 / /x rw - ext3", "1 2 - a b c"])
def test_a_table_of_another_form_is_an_error(tmp_path: Path, line: str) -> None:
    mounts = table(tmp_path / "mountinfo", line)

    with pytest.raises(ValueError, match="mountinfo"):
        mounts.read()


def test_the_table_of_this_machine_has_its_root() -> None:
    mounts = MountTable(Path("/proc/self/mountinfo")).read()

    assert "/" in [mount.mountpoint for mount in mounts]
