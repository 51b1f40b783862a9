"""`python -m bench.throttle [ROUNDS]`: slots handed out durably by etcd, PostgreSQL and reroot, in turn. I/O.

Needs Debian's etcd-server and postgresql, and asyncpg. Every server runs from the first round to the last, and is
asked while the others are idle, by the same generator in a process of its own (bench.throttle_wire); all data lies on
one filesystem.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.table import Row, Section
from bench.throttle_peers import ROOT, Etcd, Peer, Postgres, Reroot, Signing
from plumbing.errors import CommandError
from plumbing.run import run

ROUNDS = 5
CONNECTIONS = 256
WARM_S, SECONDS = 1.0, 4.0
WAITING = 100_000
SIZES = (1_000, 10_000, 100_000, 1_000_000)
SIZE_LIMIT_S = 1200.0


@dataclass(frozen=True)
class Round:
    """What one peer did in one round; times in seconds."""

    pairs_per_s: float
    grant_p50_s: float
    grant_p99_s: float
    pair_p99_s: float
    server_cpu_s: float
    """Per pair."""
    asker_cpu_s: float
    """Per pair."""


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value that `share` of the ordered values do not exceed."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def ask(peer: Peer) -> Round:
    """Have the generator ask one peer."""
    words = [sys.executable, "-m", "bench.throttle_wire", peer.name, peer.address, str(CONNECTIONS), str(WARM_S),
             str(SECONDS), str(peer.file)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=ROOT, text=True) as asker:
        assert asker.stdout is not None
        began = asker.stdout.readline()
        used = -peer.cpu_s()
        line = asker.stdout.readline()
        used += peer.cpu_s()
    assert began == "begin\n" and asker.returncode == 0, f"{peer.name}: the generator failed"
    told = json.loads(line)
    pairs = told["pairs"]
    return Round(pairs / SECONDS, quantile(told["grant_s"], 0.5), quantile(told["grant_s"], 0.99),
                 quantile(told["pair_s"], 0.99), used / pairs, told["cpu_s"] / pairs)


def rounds(count: int) -> tuple[dict[str, list[Round]], dict[str, str]]:
    """Ask all peers `count` times in turn; returns their rounds and their versions."""
    with tempfile.TemporaryDirectory(prefix="reroot-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as nobody
        ours = Reroot(folder, CONNECTIONS)
        peers: list[Peer] = [Etcd(folder), Postgres(folder, CONNECTIONS), ours, Signing(ours)]
        for peer in peers:
            peer.start()
            stack.callback(peer.stop)
        found: dict[str, list[Round]] = {peer.name: [] for peer in peers}
        for _ in range(count):
            for peer in peers:
                found[peer.name].append(ask(peer))
                print(f"{peer.name}: {found[peer.name][-1].pairs_per_s:.0f} pairs/s", file=sys.stderr)
        return found, {peer.name: peer.version for peer in peers}


def _grown(*words: object) -> Mapping[str, float | None]:
    """Run one of bench.throttle_size; nothing when it does not get there in time."""
    try:
        done = run([sys.executable, "-m", "bench.throttle_size", *map(str, words)], cwd=ROOT, timeout_s=SIZE_LIMIT_S)
    except CommandError as error:
        print(error.sentence, file=sys.stderr)
        return {}
    found: Mapping[str, float | None] = json.loads(done.stdout)
    return found


def measure(count: int = ROUNDS) -> Section:
    """Run everything, the peers `count` times in turn."""
    found, versions = rounds(count)
    waiting, sizes = _grown("wait", WAITING), _grown("fill", *SIZES)
    rows = [_row(found, f"pairs, {CONNECTIONS} connections", "pairs_per_s", "/s", 1.0, 3.0),
            _row(found, "grant, p99", "grant_p99_s", "ms", 1e3, 1.0),
            _row(found, "pair, p99", "pair_p99_s", "ms", 1e3, 1.0)]
    if (grown := _difference(waiting)) is not None:
        rows.append(Row(f"memory of {WAITING:,} waiting hosts", "1 GiB", grown, 1024, "MiB", grown / 1024, 1.0))
    return Section("Tickets", about(found, versions, waiting, sizes), rows)


def _row(found: Mapping[str, Sequence[Round]], what: str, field: str, unit: str, scale: float, target: float) -> Row:
    ours, theirs = (statistics.median(_values(found[name], field)) * scale for name in ("reroot", "etcd"))
    return Row(what, "etcd", ours, theirs, unit, ratio(found, "etcd", field), target, at_least=unit == "/s")


def _difference(waiting: Mapping[str, float | None]) -> float | None:
    """Return by how many MiB the process grew."""
    before, after = waiting.get("before"), waiting.get("after")
    return None if before is None or after is None else (after - before) / 2**20


def ratio(found: Mapping[str, Sequence[Round]], peer: str, field: str) -> float:
    """Return reroot ÷ `peer` in `field`, the median over rounds."""
    pairs = zip(_values(found["reroot"], field), _values(found[peer], field), strict=True)
    return statistics.median(ours / theirs for ours, theirs in pairs)


def _values(of_peer: Sequence[Round], field: str) -> list[float]:
    return [float(getattr(one, field)) for one in of_peer]


def about(found: Mapping[str, Sequence[Round]], versions: Mapping[str, str],
          waiting: Mapping[str, float | None], sizes: Mapping[str, float | None]) -> str:
    """Return what is told before the table: how it was measured, and the figures that have no target."""
    count = len(found["reroot"])
    lines = [
        f"A pair is a durable grant and its return. {CONNECTIONS} connections ask without pause for {SECONDS:.0f} s; "
        f"{count} rounds in turn, medians.",
        "etcd: LeaseGrant, Txn (put if nobody has the key), LeaseRevoke over gRPC, each connection its own key.",
        "PostgreSQL: a row FOR UPDATE SKIP LOCKED, and back. reroot: HTTP requests, SQLite, each connection a host in "
        "a session that it opened with one signature; then the same server, asked by hosts that sign each request.",
        "All askers run on uvloop, in a process that shares the machine's processors with the server.", "",
        "| | pairs/s | grant p50 | grant p99 | pair p99 | server CPU per pair | asker CPU per pair |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, of_peer in found.items():
        def median(field: str, of_peer: Sequence[Round] = of_peer) -> float:
            return statistics.median(_values(of_peer, field))

        lines.append(
            f"| {name} ({versions[name]}) | {median('pairs_per_s'):.0f} | {median('grant_p50_s') * 1e3:.1f} ms | "
            f"{median('grant_p99_s') * 1e3:.1f} ms | {median('pair_p99_s') * 1e3:.1f} ms | "
            f"{median('server_cpu_s') * 1e6:.0f} µs | {median('asker_cpu_s') * 1e6:.0f} µs |")
    lines += ["", "| reroot ÷ peer | pairs/s | grant p99 | pair p99 | server CPU per pair |", "|---|---|---|---|---|"]
    lines += [f"| {name} | " + " | ".join(f"{ratio(found, name, field):.2f}" for field in (
        "pairs_per_s", "grant_p99_s", "pair_p99_s", "server_cpu_s")) + " |" for name in found if name != "reroot"]
    lines += ["", "What follows is the ticket service by itself, in one process, without HTTP and signatures.", ""]
    grown = _difference(waiting)
    lines.append(f"{WAITING:,} waiting hosts: " + ("not reached." if grown is None else (
        f"{grown:.0f} MiB more; {waiting['told_to_come_back']:,.0f} of them were told when to come back and keep their "
        "place.")))
    lines += ["", "| tickets in the table | per pair |", "|---|---|"]
    for size in SIZES:
        cost = sizes.get(str(size))
        lines.append(f"| {size:,} | {'not reached' if cost is None else f'{cost * 1e6:.0f} µs'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(measure(int((sys.argv[1:] or [str(ROUNDS)])[0])).text())
