"""`reroot precious list|fetch|extract|prune|audit`: second copies on the server. I/O: HTTP, key files, a directory.

What the server gives out is opened here, on the machine of whoever has the recovery key: the server never sees it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote, urlencode

import typer

from cli import console
from cli.admin import SITE, Admin, ControlOption, SiteOption
from cli.precious import JsonOption, app
from plumbing import durable
from plumbing.errors import ConfigError, CorruptError, NotFoundError, RefusedError, UsageError
from plumbing.http import Client
from recovery.log import plain
from recovery.order import GUID

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

DEADLINE_S = 6 * 3600.0
"""How long fetching one copy may take, in seconds."""

HostArgument = Annotated[str, typer.Argument(help="The host's name in hosts.toml.")]
OrderArgument = Annotated[str, typer.Argument(help="The order's id (default: the newest copy).", show_default=False)]
TokenOption = Annotated[Path | None, typer.Option(
    "--token", envvar="REROOT_PRECIOUS_TOKEN", help="The file with a token for precious files (default: the site's "
    "keys/precious.token).", show_default=False)]
KeyOption = Annotated[Path | None, typer.Option(
    "--key", help="The recovery key: what is fetched is opened with it, here.", show_default=False)]


class Reader:
    """The control server, asked with a token for precious files."""

    def __init__(self, site: Path, control: str, token: Path | None) -> None:
        path = token or site / "keys/precious.token"
        try:
            word = path.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read ({error}); name the file of your token with --token; "
                              "`reroot trust recovery-key` makes a site's first") from error
        if not control:
            from control import config

            control = config.load(site / "reroot.toml").server.api_here()
        self._client = Client(control, signer=lambda *_: {"Authorization": f"Bearer {word}"})

    def copies(self, host: str = "") -> list[dict[str, object]]:
        """Return the copies there are, oldest first."""
        query = f"?{urlencode({'host': host})}" if host else ""
        return rows(self._client.request("GET", f"/api/v1/admin/precious{query}").accepted(), "copies")

    def newest(self, host: str, order: str) -> dict[str, object]:
        """Return the copy of `order`, or the newest, of `host`; raises NotFoundError."""
        found = [row for row in self.copies(host) if order in {"", row.get("order")}]
        if not found:
            raise NotFoundError(f"there is no second copy {f'of order {order} ' if order else ''}of {host}; `reroot "
                                "precious list` shows those there are")
        return found[-1]

    def fetch(self, row: dict[str, object], into: Path) -> None:
        """Write a copy to the file `into`, which appears when all of it is there and is what the list says."""
        from blake3 import blake3

        host, order = str(row.get("host")), str(row.get("order"))
        hasher, part = blake3(), into.with_name(f".{into.name}.part")
        path = f"/api/v1/admin/precious/copies/{quote(host, safe='')}/{quote(order, safe='')}"
        with durable.told(str(into), "nothing was fetched"):
            try:
                handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with os.fdopen(handle, "wb") as stream:
                    for piece in self._client.stream(path, deadline_s=DEADLINE_S):
                        hasher.update(piece)
                        stream.write(piece)
                if hasher.hexdigest() != row.get("blake3"):
                    raise CorruptError(f"the copy of order {order} did not come as the server lists it; fetch it again")
                part.replace(into)
            finally:
                part.unlink(missing_ok=True)


def rows(answer: object, name: str) -> list[dict[str, object]]:
    """Return the list of objects `name` of an answer; raises CorruptError."""
    found = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise CorruptError("the control server's answer is not understood; are both of the same version?")
    return found


@app.command("list")
def list_copies(
    host: Annotated[str, typer.Argument(help="Only those of this host.", show_default=False)] = "",
    site: SiteOption = SITE, control: ControlOption = "", token: TokenOption = None, as_json: JsonOption = False,
) -> None:
    """List the second copies on the server."""
    found = Reader(site, control, token).copies(host)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    table = [["HOST", "ORDER", "STORED", "SIZE"]]
    table += [[str(row.get("host")), str(row.get("order")), str(row.get("stored")), console.size(_int(row, "bytes"))]
              for row in found]
    _columns(table)


@app.command()
def fetch(
    host: HostArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write; not there yet.")],
    order: OrderArgument = "", key: KeyOption = None, site: SiteOption = SITE, control: ControlOption = "",
    token: TokenOption = None, as_json: JsonOption = False,
) -> None:
    """Fetch a second copy: encrypted as it is, or with --key the tar.zst that `tar --zstd -x` reads."""
    opener = _key(key)
    if output.exists():
        raise RefusedError(f"{output} is there already; name another file")
    reader = Reader(site, control, token)
    row = reader.newest(host, order)
    if opener is None:
        reader.fetch(row, output)
    else:
        from precious.keep import ARCHIVE

        with _opened(reader, row, opener, output.absolute().parent) as folder, durable.told(
                str(output), "nothing was fetched"):
            (folder / ARCHIVE).rename(output)
            durable.sync_folder(output.absolute().parent)
    told = {"host": row.get("host"), "order": row.get("order"), "file": str(output), "bytes": output.stat().st_size}
    print(json.dumps(told) if as_json else
          plain(f"{output}: order {row.get('order')} of {host}, {console.size(output.stat().st_size)}, "
                + ("encrypted" if opener is None else "opened: tar --zstd -x")))


@app.command()
def extract(
    source: Annotated[str, typer.Argument(metavar="FILE|HOST", help="A copy that was fetched, or a host's newest.")],
    paths: Annotated[list[str] | None, typer.Argument(
        metavar="[PATH]...", help="Files and folders as they were on the host (default: all).")] = None,
    into: Annotated[Path, typer.Option("-C", "--directory", help="Where to; empty or not there yet.")] = Path(),
    key: KeyOption = None, order: Annotated[str, typer.Option(help="Of a host: this order's copy.")] = "",
    site: SiteOption = SITE, control: ControlOption = "", token: TokenOption = None, as_json: JsonOption = False,
) -> None:
    """Take files out of a second copy, every digest checked; nothing is written outside the directory."""
    from precious import extracting

    wanted = [extracting.path_of(path) for path in paths or ()]
    opener = _key(key)
    if opener is None:
        raise UsageError("a second copy is encrypted; name the recovery key with --key")
    with _archive(source, order, opener, into, (site, control, token)) as folder:
        done = extracting.extract(folder, wanted, into)
    files = [entry for entry in done.entries if entry.is_file]
    if as_json:
        print(json.dumps({"directory": str(into), "entries": len(done.entries), "files": len(files),
                          "bytes": sum(entry.size for entry in files), "notes": list(done.notes)}))
        return
    print(f"{into}: {len(files)} files, {console.size(sum(entry.size for entry in files))}, read back")
    for note in done.notes:
        print(plain(note))


@app.command()
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    site: SiteOption = SITE, control: ControlOption = "", as_json: JsonOption = False,
) -> None:
    """Remove the copies that reroot.toml's [precious] leaves no place for; `serve` does it every hour."""
    gone = rows(Admin(site, control).post("/precious/prune", {"dry_run": dry_run}), "removed")
    if as_json:
        print(json.dumps(gone, indent=1))
        return
    for row in gone:
        print(plain(f"{'would go' if dry_run else 'removed'}: order {row.get('order')} of {row.get('host')}, "
                    f"{console.size(_int(row, 'bytes'))}: {row.get('why')}"))
    if not gone:
        print("every copy has its place")


@app.command()
def audit(
    host: Annotated[str, typer.Argument(help="Only what concerns this host.", show_default=False)] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="So many lines, the last ones.")] = 100,
    site: SiteOption = SITE, control: ControlOption = "", as_json: JsonOption = False,
) -> None:
    """Show who asked for precious files, from where, and what became of it."""
    query = urlencode({"limit": limit, **({"host": host} if host else {})})
    found = rows(Admin(site, control).get(f"/precious/audit?{query}"), "entries")
    if as_json:
        print(json.dumps(found, indent=1))
        return
    names = ("at", "from", "who", "what", "host", "order", "outcome", "why")
    _columns([[name.upper() for name in names], *([str(row.get(name, "")) for name in names] for row in found)])
    if more := sum(_int(row, "more") for row in found):
        print(f"{more} refused requests were too many to write down")


@contextmanager
def _archive(source: str, order: str, key: X25519PrivateKey, into: Path, where: tuple[Path, str, Path | None],
             ) -> Iterator[Path]:
    """Yield a scratch folder with the opened archive of a file, or of a host."""
    from precious import sealing

    beside = into.absolute().parent
    if not Path(source).is_file():
        reader = Reader(*where)
        with _opened(reader, reader.newest(source, order), key, beside) as folder:
            yield folder
        return
    with _scratch(beside) as folder:
        with Path(source).open("rb") as stream:
            sealing.unseal(stream, key, folder, order=order)
        yield folder


@contextmanager
def _opened(reader: Reader, row: dict[str, object], key: X25519PrivateKey, beside: Path) -> Iterator[Path]:
    """Yield a scratch folder with the archive of a copy on the server, which must be what the list says it is."""
    from precious import sealing

    host, order = str(row.get("host")), str(row.get("order"))
    if not GUID.fullmatch(order):
        raise CorruptError("the control server lists a copy of no order; are both of the same version?")
    with _scratch(beside) as folder:
        copy = folder / "copy"
        reader.fetch(row, copy)
        with copy.open("rb") as stream:
            sealing.unseal(stream, key, folder, host=host, order=order)
        copy.unlink()
        yield folder


@contextmanager
def _scratch(beside: Path) -> Iterator[Path]:
    """Yield a folder of this user's alone on the disk that the result is for; it is gone afterwards."""
    with durable.told(str(beside), "nothing was written"):
        beside.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=".reroot-precious-", dir=beside)
    with scratch as name:
        yield Path(name)


def _key(path: Path | None) -> X25519PrivateKey | None:
    from precious import sealkeys

    return None if path is None else sealkeys.load(path)


def _columns(table: list[list[str]]) -> None:
    console.columns([[plain(cell, 200) for cell in line] for line in table])


def _int(row: dict[str, object], name: str) -> int:
    value = row.get(name, 0)
    return value if isinstance(value, int) else 0
