"""Loss reports on record: asked for, received, answered; I/O on the database. What they mean is control.lossgate's.

Each function is one short transaction. Who accepted what, and when, stands in the host's events too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from control.database import Database, EventRow, HostRow, LossAnswerRow, LossRow
from control.lossgate import LossStanding
from plumbing import clock
from plumbing.errors import NotFoundError, RefusedError
from precious.losses import LossReport

MAX_FAILED = 500
"""Characters of a host's complaint that are kept."""


def ask(database: Database, hosts: Iterable[str], now: float) -> None:
    """Want a new report of each host; one that is wanted already stays so."""
    with database.session() as session:
        for host in hosts:
            row = _row(session, host)
            if row.asked_s is None:
                row.asked_s, row.failed = now, ""


def is_asked(database: Database, host: str) -> bool:
    """Say whether `host` owes a report."""
    with database.reading() as session:
        row = session.get(LossRow, host)
        return row is not None and row.asked_s is not None


def receive(database: Database, host: str, report: LossReport | None, failed: str, now: float) -> None:
    """Keep a report, or why there is none; whichever it is, it is owed no more."""
    with database.session() as session:
        row = _row(session, host)
        row.asked_s, row.received_s, row.failed = None, now, failed[:MAX_FAILED]
        if report is not None:
            row.report = report.to_json()
        told = {"findings": len(report.findings), "entries": report.entries} if report is not None else {}
        session.add(EventRow(host=host, order_id=None, phase="loss", event="report" if report else "no-report",
                             at=clock.iso(now), received_s=now, data=told, message=row.failed))


def standing(database: Database, host: str) -> LossStanding:
    """Return what is known of a host's losses."""
    with database.reading() as session:
        row, known = session.get(LossRow, host), session.get(HostRow, host)
        answers = session.scalars(select(LossAnswerRow).where(LossAnswerRow.host == host)).all()
        healthy_s = known.healthy_s if known is not None else None
        if row is None:
            return LossStanding(host, healthy_s=healthy_s)
        report = LossReport.from_json(row.report) if row.report is not None else None
        return LossStanding(host, row.asked_s, row.received_s, report, row.failed, healthy_s,
                            frozenset((answer.finding, answer.baseline) for answer in answers))


def answers_of(database: Database, host: str) -> Sequence[LossAnswerRow]:
    """Return who accepted what, the newest first."""
    with database.reading() as session:
        return session.scalars(select(LossAnswerRow).where(LossAnswerRow.host == host).order_by(
            LossAnswerRow.at_s.desc())).all()


def accept(database: Database, host: str, findings: Collection[str] | None, who: str, now: float) -> int:
    """Write down that findings of the newest report may be lost, None: all of them; returns how many were open.

    Raises NotFoundError for a finding that the report does not have, RefusedError when there is no report.
    """
    with database.session() as session:
        row = _row(session, host)
        if row.report is None:
            raise RefusedError(f"{host} has made no loss report yet; `reroot precious report {host}` asks for one")
        report = LossReport.from_json(row.report)
        known = {finding.id for finding in report.findings}
        if unknown := sorted(set(findings or ()) - known):
            raise NotFoundError(f"the newest loss report of {host} has no finding {unknown[0]!r}; "
                                f"`reroot precious report {host}` prints those it has")
        before = {answer.finding: answer for answer in session.scalars(
            select(LossAnswerRow).where(LossAnswerRow.host == host))}
        for answer in before.values():  # of another installation: they are about other files
            if answer.baseline != report.baseline:
                session.delete(answer)
        session.flush()
        fresh = [finding for finding in report.findings if (findings is None or finding.id in findings) and not (
            finding.id in before and before[finding.id].baseline == report.baseline)]
        for finding in fresh:
            session.add(LossAnswerRow(host=host, finding=finding.id, baseline=report.baseline, who=who, at_s=now))
            session.add(EventRow(
                host=host, order_id=None, phase="loss", event="accepted", at=clock.iso(now), received_s=now,
                data={"finding": finding.id, "who": who}, message=f"{who} accepted the loss of {finding.files} files: "
                f"{finding.kind.value} {finding.where}"))
        return len(fresh)


def _row(session: Session, host: str) -> LossRow:
    row = session.get(LossRow, host)
    if row is None:
        row = LossRow(host=host, failed="")
        session.add(row)
    return row
