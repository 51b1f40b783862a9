"""`reroot init DIR`: a new site. I/O: the directory, stdout."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Annotated

import typer


def init(
    directory: Annotated[Path, typer.Argument(help="Where the site shall be; must not exist or be empty.")],
    url: Annotated[str, typer.Option(help="What hosts call this server (default: http://THIS-MACHINE:8080).")] = "",
    recovery_key: Annotated[Path | None, typer.Option(
        help="The file of an X25519 key, its public half suffices, for which hosts encrypt second copies of precious "
        "files (default: a new one).", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a new site: keys, catalogue, store, and configuration files with examples."""
    from control import site

    made = site.init(directory, url or f"http://{socket.gethostname()}:8080", recovery_key)
    if as_json:
        print(json.dumps({"site": str(made.root), "config": str(made.config)}))
        return
    print(f"{made.root} is ready.")
    print(f"  {made.config}: check public_url")
    print(f"  {made.keys}: root.pem and targets.pem belong on a disk that is not here; see docs/trust.md")
    if recovery_key is None:
        print(f"  {made.recovery_key}: opens every second copy of precious files, and nothing here needs it: take it "
              "offline now, and keep it; see docs/trust.md")
    print(f"  next: reroot serve --site {made.root}")
