"""The loss report of this living host (I/O): made when the control server asks, and before every reboot.

The walk runs in a process of its own (`precious.losswalk`), nice to the host's work; its memory is the host's
again when it is over. Here is what it needs, the index of the release that this root was made from, and what becomes of
the report. docs/protocols/loss.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fleet import health
from plumbing import clock, durable
from plumbing.digest import sha256
from plumbing.errors import CommandError, CorruptError, RefusedError, RerootError, from_wire
from plumbing.run import spawn
from precious.losses import LossReport, blocks, shown
from precious.policy import Policy
from precious.rules import LossRule
from recovery import servers
from recovery.identity import AGENT, Identity
from recovery.log import Log
from recovery.order import Order
from recovery.report import Reporter

if TYPE_CHECKING:
    from imaging.trusted import TrustedCatalogue

WALK_S = 3600.0
"""How long a walk may take, in seconds; 500,000 files take one minute on a machine that has nothing else to do."""
MAX_LINE = 4 << 20
PHASE = "loss"
NAMED = 3
"""How many findings a sentence names."""


class UnansweredError(RefusedError):
    """The host would lose something that nobody answered for; nothing was touched."""


class LossReports:
    """Makes the reports of one host."""

    def __init__(self, identity: Identity, believed: TrustedCatalogue, local: Path, log: Log, reporter: Reporter,
                 root: Path = Path("/")) -> None:
        self._identity, self._believed, self._local, self._root = identity, believed, local, root
        self._log, self._reporter = log, reporter

    def answer(self) -> None:
        """Make the report that the server asked for, and send it, or why there is none. Raises NetworkError."""
        client = self._identity.client()
        try:
            told = client.request("GET", self._path, deadline_s=60.0).accepted()
        finally:
            client.close()
        try:
            policy = told.get("policy") if isinstance(told, dict) else None
            report = self.make(Policy.from_json(policy if isinstance(policy, dict) else {}))
        except (RerootError, OSError) as error:
            why = error.sentence if isinstance(error, RerootError) else str(error)
            self._log.say(PHASE, f"no report: {why}")
            self._send({"failed": why[:2000]})
            return
        self._log.say(PHASE, f"{len(report.findings)} findings in {report.entries} entries, {report.seconds:.1f} s")
        self._send({"report": report.to_json()})

    def require(self, order: Order) -> None:
        """Look a last time before the reboot; raises UnansweredError when the order's policy says so."""
        policy = Policy.from_json(order.precious)
        if policy.loss.rule is LossRule.WARN:
            return
        report = self.make(policy)
        left = blocks(policy.loss.rule, report, accepted(order, report.baseline))
        if left:
            self._send({"report": report.to_json()})
            named = ", ".join(f"{finding.kind.value} {finding.where}" for finding in left[:NAMED])
            raise UnansweredError(
                f"{self._identity.host} would lose what nobody answered for ({len(left)} findings: {named}"
                f"{' …' if len(left) > NAMED else ''}); see `reroot precious report {self._identity.host}`")

    def make(self, policy: Policy) -> LossReport:
        """Walk the root under `policy`; raises RerootError."""
        job: dict[str, object] = {"root": str(self._root), "policy": policy.to_json(), "baseline": "packages"}
        installed = health.installed(self._root / health.RELEASE_FILE.relative_to("/"))
        entries = 0
        if installed.get("release"):
            try:
                index, entries = self._index(installed)
                job |= {"index": str(index), "baseline": f"{installed['release']} {installed.get('digest', '')} "
                        f"{installed.get('installed', '')}", "since_s": _seconds(installed.get("installed", ""))}
            except RerootError as error:
                self._log.say(PHASE, f"compared with the package database: {error.sentence}")
        self._reporter.send(PHASE, "begin")
        began = clock.monotonic()
        report = self._walk(job, entries)
        self._reporter.send(PHASE, "done", {"entries": report.entries, "findings": len(report.findings),
                                            "seconds": round(clock.monotonic() - began, 1)})
        return report

    @property
    def _path(self) -> str:
        return f"/api/v1/hosts/{self._identity.host}/loss"

    def _send(self, value: Mapping[str, object]) -> None:
        client = self._identity.client()
        try:
            answer = client.post_json(self._path, value, deadline_s=60.0)
        finally:
            client.close()
        if answer.status >= 400:
            answer.accepted()

    def _index(self, installed: Mapping[str, str]) -> tuple[Path, int]:
        """Return a file with the index of the installed release, and how many entries it has."""
        from imaging.release import Release
        from imaging.sources import HttpSource

        release = Release.parse(self._believed.fetch(f"releases/{installed['release']}.json"))
        if release.digest != installed.get("digest"):
            raise CorruptError(f"the catalogue has another {release.ref} than was installed here")

        def right(packed: bytes) -> bytes:
            if len(packed) != release.index_length or sha256(packed) != release.index_digest:
                raise CorruptError(f"it is not the index of {release.ref}")
            return packed

        folder, stem = self._local / AGENT, release.index_digest.removeprefix("sha256:")
        place = folder / f"index-{stem}.zst"
        for other in folder.glob("index-*.zst"):
            if other != place:
                other.unlink(missing_ok=True)
        if not place.is_file() or sha256(place.read_bytes()) != release.index_digest:
            urls = dict.fromkeys((*self._identity.content, self._identity.control))
            packed = servers.first_right([HttpSource(url, release.layer_digest) for url in urls],
                                         (release.index_offset, release.index_length), right, f"release {release.ref}")
            durable.write_file(place, packed, 0o600)
        return place, release.entries

    def _walk(self, job: Mapping[str, object], total: int) -> LossReport:
        with tempfile.TemporaryFile() as errors:
            child = spawn([*interpreter(), "-m", "precious.losswalk"], errors=errors, pipes=True)
            assert child.stdin is not None and child.stdout is not None
            alarm = threading.Timer(WALK_S, child.kill)
            alarm.start()
            try:
                with child.stdin as job_of:
                    job_of.write(json.dumps(job).encode())
                last: object = None
                while line := child.stdout.readline(MAX_LINE):
                    last = _parsed(line)
                    if isinstance(last, dict) and "entries" in last and "report" not in last:
                        self._reporter.send(PHASE, "progress", {"what": PHASE, "done": last["entries"], "total": total})
            except BrokenPipeError:
                last = None
            finally:
                alarm.cancel()
                child.kill()
                child.stdout.close()
                status = child.wait()
            errors.seek(0)
            said = errors.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
        match last:
            case {"report": found}:
                return LossReport.from_json(found)
            case {"kind": str(kind), "value": str(value)}:
                raise from_wire(kind, value)
        raise CommandError(f"the walk ended without a report (status {status}: {said[-1] if said else 'no reason'})")


def accepted(order: Order, baseline: str) -> frozenset[str]:
    """Return the findings that an order says may be lost, as far as they are about this installation of the host."""
    match order.precious.get("accepted"):
        case {"baseline": str(of), "findings": list(found)} if of == baseline:
            return frozenset(one for one in found if isinstance(one, str))
    return frozenset()


def interpreter() -> list[str]:
    """Return how this very program's Python is started: with its own loader, on a host that has none of its own."""
    words = Path("/proc/self/cmdline").read_bytes().split(b"\0")
    if b"fleet.agent" in words and b"-m" in words:
        return [word.decode("utf-8", "surrogateescape") for word in words[:words.index(b"-m")]]
    return [sys.executable]


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line)
    except ValueError as error:
        raise CommandError(f"the walk printed what is no JSON: {shown(line[:100])}") from error


def _seconds(iso: str) -> float:
    """Return wall seconds, rounded up, for a time that is written in whole ones; 0 for what is no time."""
    try:
        return clock.from_iso(iso) + 1.0
    except ValueError:
        return 0.0
