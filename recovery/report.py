"""Telling the control server how it goes (I/O): signed reports, sent beside the work, never a reason to fail.

Reports wait in order in a queue in memory; a thread sends them. While the server does not answer they are kept, the
least useful dropped first, and tried again with the next one. The protocol is docs/protocols/host-api.md.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from plumbing import clock
from plumbing.errors import NetworkError, RerootError, TrustError
from recovery.identity import Identity
from recovery.log import Log

QUEUE_LIMIT = 200
"""How many reports are kept while the server does not answer."""

SEND_TIMEOUT_S = 10.0
DEADLINE_S = 30.0
"""How long one answer may take as a whole, in seconds: a server that drips bytes holds no report and no enrolment."""
PROGRESS_EVERY_S = 5.0
"""Least time between two progress reports, in seconds."""

PAUSE_AFTER_FAILURE_S = 10.0


@dataclass(frozen=True)
class Report:
    """One line of a host's story, as POST /api/v1/hosts/{host}/report takes it."""

    order: str | None
    phase: str
    event: str
    at: str
    data: Mapping[str, object]
    message: str | None

    def body(self) -> bytes:
        """Return the JSON of the request."""
        return json.dumps({"order": self.order, "phase": self.phase, "event": self.event, "at": self.at,
                           "data": dict(self.data), "message": self.message}).encode()


class Reporter:
    """The queue and the thread that empties it. Without an identity everything is only kept."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._identity: Identity | None = None
        self._queue: list[Report] = []
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        self._quiet_until = 0.0
        self._last_progress = 0.0
        self._sending = False
        self._complained = False
        self.order: str | None = None
        """Id of the order that reports belong to; set when an order was verified."""

    def identify(self, identity: Identity) -> None:
        """From now on sign as `identity`; what waited is sent."""
        with self._change:
            self._identity = identity
            self._quiet_until = 0.0
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="report")
                self._thread.start()
            self._change.notify_all()

    def send(self, phase: str, event: str, data: Mapping[str, object] | None = None,
             message: str | None = None) -> None:
        """Queue a report; returns at once. Progress is thinned out."""
        now = clock.monotonic()
        with self._change:
            if event == "progress":
                if now - self._last_progress < PROGRESS_EVERY_S:
                    return
                self._last_progress = now
                self._queue = [r for r in self._queue if r.event != "progress"]
            else:
                self._quiet_until = 0.0
            self._queue.append(Report(self.order, phase, event, clock.iso(clock.wall()), data or {}, message))
            if len(self._queue) > QUEUE_LIMIT:
                del self._queue[0]
            self._change.notify_all()

    def flush(self, wait_s: float = SEND_TIMEOUT_S) -> bool:
        """Wait until everything was taken, at most `wait_s` seconds; say whether it was."""
        with self._change:
            if self._identity is None:
                return not self._queue
            self._quiet_until = 0.0
            self._change.notify_all()
            self._change.wait_for(lambda: self._idle() or self._quiet_until > clock.monotonic(), timeout=wait_s)
            return self._idle()

    def _idle(self) -> bool:
        return not self._queue and not self._sending

    def waiting(self) -> tuple[Report, ...]:
        """Return the reports nobody has taken yet."""
        with self._change:
            return tuple(self._queue)

    def _run(self) -> None:
        while True:
            with self._change:
                self._sending = False
                self._change.notify_all()
                while not self._queue or self._quiet_until > clock.monotonic():
                    left = self._quiet_until - clock.monotonic()
                    self._change.wait(timeout=left if self._queue and left > 0 else None)
                report, identity = self._queue[0], self._identity
                self._sending = True
            assert identity is not None
            taken = self._post(identity, report)
            with self._change:
                if taken:
                    # the queue may have been thinned meanwhile, so it is looked for, not popped
                    self._queue = [r for r in self._queue if r is not report]
                else:
                    self._quiet_until = clock.monotonic() + PAUSE_AFTER_FAILURE_S

    def _post(self, identity: Identity, report: Report) -> bool:
        """Send one report; True when it needs no further try."""
        client = identity.client(timeout_s=SEND_TIMEOUT_S)
        try:
            answer = client.request("POST", f"/api/v1/hosts/{identity.host}/report", body=report.body(),
                                    headers={"Content-Type": "application/json"}, max_bytes=1 << 16,
                                    deadline_s=DEADLINE_S)
        except RerootError as error:
            self._complain(error.sentence)
            return False
        finally:
            client.close()
        if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR or answer.status in (
                HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS):
            self._complain(f"the control server answered {answer.status} to a report")
            return False
        if answer.status >= HTTPStatus.BAD_REQUEST:
            # it will not like it better the second time
            self._complain(f"the control server refused a report of {report.phase} with {answer.status}; it is dropped")
            return True
        self._complained = False
        return True

    def _complain(self, sentence: str) -> None:
        if not self._complained:
            self._complained = True
            self._log.say("report", f"{sentence}; reports are kept and tried again")


def enrol(identity: Identity, secret: Mapping[str, str]) -> None:
    """Give the control server this host's key; doing it again with the same secret is harmless.

    `secret` is {"token": …} from an administrator, which stays here: what is sent proves that this host knows it, for
    this key only. Or it is {"order": …, "nonce": …} from an install order.
    Raises TrustError when the server refuses it and NetworkError when it does not answer properly.
    """
    from cryptography.hazmat.primitives import serialization

    from plumbing import hostauth

    raw = identity.key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    public_key = base64.b64encode(raw).decode()
    if "token" in secret:
        digest = hostauth.token_digest(secret["token"])
        secret = {"proof": hostauth.enrolment_proof(digest, identity.host, public_key)}
    client = identity.client()
    try:
        answer = client.post_json("/api/v1/enrol", {
            "host": identity.host, "public_key": public_key, **secret}, max_bytes=1 << 16, deadline_s=DEADLINE_S)
    finally:
        client.close()
    if answer.status in (HTTPStatus.OK, HTTPStatus.CREATED):
        return
    said = f"{identity.control} answered {answer.status} to the enrolment of {identity.host}"
    if HTTPStatus.BAD_REQUEST <= answer.status < HTTPStatus.INTERNAL_SERVER_ERROR:
        raise TrustError(f"{said}; the token or order works once and for a time: issue a new one")
    raise NetworkError(f"{said}; look at its log")
