"""The last gasp (I/O): one mail when recovery cannot go on, by whichever gateway takes it.

In: what happened and the order's mail section. Out: a mail, or a file in the spool for the agent to send later.
Everything is bounded in time, also against a gateway that never finishes its greeting: docs/protocols/recovery.md.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plumbing import clock, durable
from plumbing.errors import ConfigError, DiskError
from recovery.fields import Fields, parse_object
from recovery.log import plain
from recovery.order import Gateway, Mail, mail_from, mail_to_json

if TYPE_CHECKING:
    import smtplib

GATEWAY_WAIT_S = 20.0
"""How long one gateway may take for the whole mail, in seconds."""

TOTAL_WAIT_S = 60.0
"""How long all gateways together may take, in seconds."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Gasp:
    """What happened; `lines` are the last of the log, `advice` what a person can try."""

    host: str
    order: str | None
    phase: str
    kind: str
    sentence: str
    at: str
    lines: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Names this failure: the same one again has the same digest."""
        parts = (self.host, self.order or "", self.phase, self.kind, self.sentence)
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def compose(gasp: Gasp, mail: Mail) -> bytes:
    """Return the message as RFC 5322 bytes with CRLF. Pure; no text in `gasp` can add a header or a recipient."""
    from email.message import EmailMessage
    from email.policy import SMTP
    from email.utils import formatdate

    message = EmailMessage(policy=SMTP)
    message["From"] = mail.sender
    message["To"] = ", ".join(mail.to)
    message["Subject"] = plain(f"reroot: {gasp.host} stopped in {gasp.phase} ({gasp.kind})", 200)
    message["Date"] = formatdate(clock.from_iso(gasp.at))
    message["Message-ID"] = f"<{gasp.digest[:40]}@reroot.invalid>"
    message["Auto-Submitted"] = "auto-generated"
    body = [
        f"host:   {plain(gasp.host)}", f"order:  {plain(gasp.order or 'none')}", f"phase:  {plain(gasp.phase)}",
        f"kind:   {plain(gasp.kind)}", f"time:   {gasp.at}", "", plain(gasp.sentence), "", "What to try:",
        *(f"- {plain(line)}" for line in gasp.advice), "", "The last lines of its log:",
        *(f"  {plain(line)}" for line in gasp.lines), "",
    ]
    message.set_content("\n".join(body))
    return bytes(message)


class _EncryptionError(OSError):
    """The gateway offers STARTTLS and it does not work."""


def _encrypt(smtp: smtplib.SMTP, name: str) -> None:
    """RFC 3207, as smtplib does it where there is `ssl`: what was said in clear is forgotten."""
    try:
        from recovery.starttls import Encrypted

        status, answer = smtp.docmd("STARTTLS")
        if status != 220:
            raise OSError(f"{status} {answer.decode('ascii', 'replace')}")
        assert smtp.sock is not None
        smtp.sock = Encrypted(smtp.sock, name)  # type: ignore[assignment]
        smtp.file = smtp.helo_resp = smtp.ehlo_resp = None
        smtp.esmtp_features, smtp.does_esmtp = {}, False
        smtp.ehlo()
    except (OSError, ValueError, ImportError) as error:
        raise _EncryptionError(f"encryption failed: {plain(str(error))}") from error


def _speak(smtp: smtplib.SMTP, gateway: Gateway, mail: Mail, message: bytes, *, encrypt: bool) -> None:
    smtp.connect(gateway.host, gateway.port)
    smtp.ehlo_or_helo_if_needed()
    if encrypt and smtp.has_extn("starttls"):
        _encrypt(smtp, gateway.host)
    smtp.sendmail(mail.sender, list(mail.to), message)
    with suppress(OSError):
        smtp.quit()


def _attempt(gateway: Gateway, mail: Mail, message: bytes, wait_s: float, *, encrypt: bool) -> None:
    """Deliver by one gateway within `wait_s` seconds or raise OSError (as smtplib's are) or ValueError."""
    import smtplib

    smtp = smtplib.SMTP(timeout=max(1.0, wait_s), local_hostname="reroot.invalid")
    failure: list[OSError | ValueError] = []

    def work() -> None:
        try:
            _speak(smtp, gateway, mail, message, encrypt=encrypt)
        except (OSError, ValueError) as error:
            failure.append(error)
        finally:
            smtp.close()

    # A timeout for each read is none for a gateway that sends a byte now and then, nor for a dead resolver:
    # so the wait is for the whole conversation, and the line is cut after it.
    thread = threading.Thread(target=work, daemon=True, name=f"mail to {gateway.host}")
    thread.start()
    thread.join(wait_s)
    if thread.is_alive():
        if smtp.sock is not None:
            with suppress(OSError):
                smtp.sock.shutdown(2)
        raise TimeoutError(f"it did not take the mail within {wait_s:.0f} s")
    if failure:
        raise failure[0]


def deliver(message: bytes, mail: Mail, *, say: Say, gateway_wait_s: float = GATEWAY_WAIT_S,
            total_wait_s: float = TOTAL_WAIT_S) -> Gateway | None:
    """Hand `message` to the first gateway that takes it; None when none did in time."""
    deadline = clock.monotonic() + total_wait_s
    for gateway in mail.gateways:
        for encrypt in (True, False):
            wait_s = min(gateway_wait_s, deadline - clock.monotonic())
            if wait_s <= 0:
                return None
            try:
                _attempt(gateway, mail, message, wait_s, encrypt=encrypt)
            except (OSError, ValueError) as error:
                say(f"{gateway.host}:{gateway.port} did not take the mail ({error})")
                if isinstance(error, _EncryptionError):
                    continue
                break
            return gateway
    return None


def _spooled(gasp: Gasp, mail: Mail, message: bytes) -> bytes:
    return json.dumps({"spec": 1, "digest": gasp.digest, **mail_to_json(mail),
                       "message": base64.b64encode(message).decode()}, indent=1).encode()


class LastGasp:
    """Sends each failure once: by mail, else into the spool; remembers in the spool, or in memory without one."""

    def __init__(self, *, say: Say, spool: Path | None = None, gateway_wait_s: float = GATEWAY_WAIT_S,
                 total_wait_s: float = TOTAL_WAIT_S) -> None:
        self._say = say
        self.spool = spool
        self._gateway_wait_s = gateway_wait_s
        self._total_wait_s = total_wait_s
        self._known: set[str] = set()

    def tell(self, gasp: Gasp, mail: Mail | None) -> str:
        """Tell people; returns what came of it: sent, spooled, duplicate or untold. Never raises for a dead gateway."""
        digest = gasp.digest
        if digest in self._known or (self.spool is not None and (self.spool / f"{digest}.sent").exists()):
            self._say("this failure was told before; no second mail")
            return "duplicate"
        if mail is None or not mail.gateways or not mail.to:
            self._say("no mail gateway is known; this failure is told here only")
            return "untold"
        message = compose(gasp, mail)
        gateway = deliver(message, mail, say=self._say, gateway_wait_s=self._gateway_wait_s,
                          total_wait_s=self._total_wait_s)
        if gateway is not None:
            self._known.add(digest)
            self._write(f"{digest}.sent", clock.iso(clock.wall()).encode())
            self._drop(f"{digest}.json")
            self._say(f"{gateway.host} took the mail to {', '.join(mail.to)}")
            return "sent"
        if self._write(f"{digest}.json", _spooled(gasp, mail, message)):
            self._say("no gateway took the mail; it is spooled on /local and goes out when the host is well")
            return "spooled"
        self._say("no gateway took the mail and there is no /local to keep it")
        return "untold"

    def _write(self, name: str, data: bytes) -> bool:
        if self.spool is None:
            return False
        try:
            durable.make_folder(self.spool)
            durable.write_file(self.spool / name, data, 0o600)
        except OSError as error:  # a full or failing /local must not silence the console and the report
            self._say(f"{self.spool / name} cannot be written ({error.strerror})")
            return False
        return True

    def _drop(self, name: str) -> None:
        if self.spool is not None:
            with suppress(OSError):
                (self.spool / name).unlink(missing_ok=True)


def read_mail(raw: dict[str, object], where: str) -> Mail:
    """Return a mail section that was kept on /local; raises ConfigError when it is not one of an order."""
    mail = mail_from(Fields(raw, where))
    assert mail is not None
    return mail


def _read_spooled(path: Path) -> tuple[Mail, bytes]:
    try:
        raw = parse_object(path.read_bytes(), path.name)
        mail = read_mail({name: raw[name] for name in ("from", "to", "gateways")}, path.name)
        return mail, base64.b64decode(str(raw["message"]), validate=True)
    except OSError as error:
        raise DiskError(f"{path} cannot be read ({error.strerror}); check /local") from error
    except (ValueError, KeyError, ConfigError) as error:
        raise ConfigError(f"{path} is not a spooled mail ({error}); remove it") from error


def spooled(folder: Path) -> Sequence[Path]:
    """Return the mails nobody took yet, by name."""
    return sorted(path for path in folder.glob("*.json") if path.is_file()) if folder.is_dir() else []


def deliver_spool(folder: Path, *, say: Say, gateway_wait_s: float = GATEWAY_WAIT_S,
                  total_wait_s: float = TOTAL_WAIT_S) -> int:
    """Send what recovery could not; returns how many went out. What no gateway takes stays. For the agent."""
    sent = 0
    for path in spooled(folder):
        try:
            mail, message = _read_spooled(path)
        except ConfigError as error:
            say(error.sentence)
            continue
        if deliver(message, mail, say=say, gateway_wait_s=gateway_wait_s, total_wait_s=total_wait_s) is None:
            return sent
        durable.write_file(path.with_suffix(".sent"), clock.iso(clock.wall()).encode())
        path.unlink()
        durable.sync_folder(folder)
        sent += 1
    return sent
