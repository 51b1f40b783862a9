"""A restoring process: killed at any moment it goes on from its journal, and its memory has a bound."""

from __future__ import annotations

import random
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import captured
import pytest
from loopback import Server
from trees import describe, noise

from imaging.capture import capture
from imaging.release import Release
from imaging.store import Store
from imaging.verify import verify
from recovery.journal import Journal

CHILD = Path(__file__).with_name("restoring_child.py")
KILLS = 25
PEAK_BYTES = 192 << 20


def child(manifest: Path, target: Path, journal: Path, *places: Path | str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, CHILD, manifest, target, journal, *places], stdout=subprocess.PIPE,
                            text=True)


@pytest.mark.root
def test_killed_at_random_moments_it_ends_with_the_same_tree(tmp_path: Path) -> None:
    """kill -9 from the first system call of the restore to its last; each start goes on from the journal."""
    made = captured.rich(tmp_path)
    manifest, target = tmp_path / "manifest", tmp_path / "target"
    manifest.write_bytes(made.manifest)
    target.mkdir()
    chance = random.Random(20261125)
    killed, kept, frames = 0, 0, len(made.index.frames)
    longest = 0.01
    journal = tmp_path / "journal"
    while killed < KILLS or not kept:
        assert killed < 8 * KILLS, "nothing was ever noted as done"
        with child(manifest, target, journal, made.source.name) as process:
            assert process.stdout is not None and process.stdout.readline() == "begin\n"
            with suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0, longest))
            process.kill()
        before, kept = kept, len(Journal(journal).state.frames) if journal.exists() else 0
        assert before <= kept <= frames
        if process.returncode == 0:  # it was through before its moment came: from the beginning, in an empty place
            journal.unlink()
            target = tmp_path / f"target-{killed}-{chance.random()}"
            target.mkdir()
            kept, longest = 0, longest / 2
            continue
        killed += 1
        longest *= 1.3
    with child(manifest, target, journal, made.source.name) as process:
        out, _ = process.communicate()
    assert process.returncode == 0
    assert int(out.split()[1]) == kept > 0, "the last start went on from what the others had done"
    assert describe(target) == describe(made.tree)
    assert verify(made.index, target) == []


@pytest.mark.root
def test_memory_has_a_bound_over_the_network(tmp_path: Path) -> None:
    """Frames as long as the cutter makes them, incompressible, from three providers, and many small files."""
    tree = tmp_path / "tree"
    for number in range(60):
        (tree / f"{number}").mkdir(parents=True)
        for other in range(200):
            (tree / f"{number}/{other}").write_bytes(b"%d %d" % (number, other))
        (tree / f"{number}/z").write_bytes(noise(number, (1 << 20) - 1 - number))
        (tree / f"{number}/zz").write_bytes(noise(number, 4 << 20))
    store = Store(tmp_path / "store")
    store.create()
    manifest = tmp_path / "manifest"
    manifest.write_bytes(capture(tree, store, name="p", version="1", arch="amd64", level=1))
    release = Release.parse(manifest.read_bytes())
    blob = tmp_path / f"v2/reroot/blobs/{release.layer_digest}"
    blob.parent.mkdir(parents=True)
    blob.hardlink_to(store.blob_path(release.layer_digest))
    (tmp_path / "target").mkdir()
    with ExitStack() as stack:
        urls = [stack.enter_context(Server(tmp_path)).url for _ in range(3)]
        with child(manifest, tmp_path / "target", tmp_path / "journal", *urls) as process:
            out, _ = process.communicate()
    assert process.returncode == 0
    assert release.layer_size > PEAK_BYTES
    assert int(out.split()[2]) <= PEAK_BYTES
