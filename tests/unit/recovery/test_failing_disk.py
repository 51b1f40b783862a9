"""Fault 3 without a machine: the kernel itself answers EIO to writes amid the restore.

The new root's loop device lies on a tmpfs that fills up: what does not fit is an I/O error to the filesystem above, as
from a failing disk. tests/vm/faults has the same with QEMU's blkdebug.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from loopdevice import attached
from mailboxes import Mailbox
from one_host import Host, drive, free_port, old_tree, reissue

from plumbing.run import run
from recovery.journal import Journal
from recovery.order import Gateway, Mail

pytestmark = pytest.mark.root

ROOM = 1 << 20
"""What the failing disk takes beyond an empty filesystem, in bytes; the release has three times that."""


@pytest.fixture
def failing(alpha: Host, tmp_path: Path) -> Iterator[Host]:
    """Alpha, with a root whose disk fails after ROOM more bytes; `_repair` makes it whole."""
    small = tmp_path / "small"
    small.mkdir()
    with ExitStack() as stack:
        run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", small])
        stack.callback(run, ["umount", "--lazy", small])
        with (small / "root.img").open("wb") as stream:
            stream.truncate(48 << 20)
        sound, alpha.devices["root"] = alpha.devices["root"], stack.enter_context(attached(small / "root.img"))
        stack.callback(alpha.devices.__setitem__, "root", sound)
        run(["mkfs.ext4", "-q", "-F", alpha.devices["root"]])
        with alpha.mounted("root") as root:
            old_tree(root)
        run(["sync", "-f", small])
        used = (small / "root.img").stat().st_blocks * 512
        run(["mount", "-o", f"remount,size={used + ROOM}", small])
        yield alpha


def test_a_disk_that_fails_under_the_new_root_is_no_success(failing: Host, tmp_path: Path) -> None:
    gateway = Gateway("127.0.0.1", free_port())
    reissue(failing, attempts=1, mail=Mail("reroot@site.example", ("night@site.example",), (gateway,)))
    box = Mailbox()
    controller = Controller(box, hostname=gateway.host, port=gateway.port)
    controller.start()
    try:
        _, menus = drive(failing)
    finally:
        controller.stop()
    assert len(menus) == 1 and failing.boots() == "recovery", "a half-made root never starts"
    text = box.message().get_content()
    print(f"writes to the new root fail: {box.message()['Subject']}; {menus[0]}")
    assert "phase:  restore" in text and "kind:   disk" in text
    sentence = text.split("What to try")[0]
    assert "EIO" in sentence or "Input/output error" in sentence, "the errno, not only in the log"
    with failing.mounted("local") as local:
        state = Journal(local / "recover/journal").state
    assert state.wiped and not {"restore", "finish"} & state.done
    run(["mount", "-o", "remount,size=64m", tmp_path / "small"])
    _, menus = drive(failing)
    assert menus == [] and failing.boots() == "system", "with a disk that works it goes through"
