"""A mail gateway of the lab: a real SMTP receiver that writes each mail into a folder.

I/O. Runs as a program inside the lab's network (`python -m lab.mailbox FOLDER ADDRESS PORT`), so a machine's
last gasp reaches it as it would reach a company's gateway. aiosmtpd is a test dependency.
"""

from __future__ import annotations

import asyncio
import os
import sys
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING

from lab.process import Process
from lab.session import Lab
from plumbing import clock, durable
from plumbing.errors import CommandError

if TYPE_CHECKING:
    from aiosmtpd.smtp import SMTP, Envelope, Session

_STEP_S = 0.1


class Mailbox:
    """A running gateway at `address`:`port` of a lab."""

    def __init__(self, lab: Lab, *, address: str | None = None, port: int = 25, name: str = "mailbox") -> None:
        self.address, self.port = address or lab.control_address, port
        self.folder = lab.logs / name
        self.folder.mkdir(exist_ok=True)
        self._lab = lab
        argv = [sys.executable, "-m", "lab.mailbox", os.fspath(self.folder), self.address, str(port)]
        self.process: Process = lab.program(argv, name=f"{name}-smtp")
        self._wait_until_open(20.0)

    @property
    def messages(self) -> list[EmailMessage]:
        """All mails received so far, oldest first."""
        parser = BytesParser(policy=policy.default)
        found = []
        for path in sorted(self.folder.glob("*.eml")):
            message = parser.parsebytes(path.read_bytes())
            assert isinstance(message, EmailMessage), "policy.default makes EmailMessage"
            found.append(message)
        return found

    def wait_for_mail(self, timeout_s: float = 60.0, *, count: int = 1) -> list[EmailMessage]:
        """Wait until at least `count` mails are there and return them all; raises CommandError otherwise."""
        deadline = clock.monotonic() + timeout_s
        while len(got := self.messages) < count:
            if clock.monotonic() > deadline:
                raise CommandError(f"{len(got)} of {count} mails came to {self.address}:{self.port} within "
                                   f"{timeout_s:.0f} s; the gateway's log is {self.process.log}")
            sleep(_STEP_S)
        return got

    def _wait_until_open(self, timeout_s: float) -> None:
        deadline = clock.monotonic() + timeout_s
        while not self._lab.network.listening(self.address, self.port):
            if not self.process.running or clock.monotonic() > deadline:
                raise CommandError(f"the lab's mail gateway did not start: {self.process.last_words(2)}")
            sleep(_STEP_S)


class _Folder:
    """aiosmtpd's handler: one file for each mail, with the SMTP envelope as headers of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = len(list(folder.glob("*.eml")))

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        content = envelope.content
        assert isinstance(content, bytes), "decode_data is off"
        head = f"X-Envelope-From: {envelope.mail_from}\r\nX-Envelope-To: {', '.join(envelope.rcpt_tos)}\r\n"
        self._count += 1
        durable.write_file(self._folder / f"{self._count:04}.eml", head.encode() + content)
        return "250 kept"


async def _receive(folder: Path, address: str, port: int) -> None:
    from aiosmtpd.smtp import SMTP

    handler = _Folder(folder)
    server = await asyncio.get_running_loop().create_server(lambda: SMTP(handler, hostname="mailbox"), address, port)
    async with server:
        await server.serve_forever()


def main() -> int:
    """Receive mails until killed."""
    asyncio.run(_receive(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
