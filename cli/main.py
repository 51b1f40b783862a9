"""`reroot`: finds the command's module, runs it, and says what went wrong in one sentence. I/O: stderr, exit code.

Groups are imported when they are named, so that `reroot ticket get` on a slow host does not load a web server.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from cli import console
from plumbing.errors import EXIT_CODES, Kind, RerootError, UsageError
from plumbing.spelling import hint
from recovery.log import plain


@dataclass(frozen=True)
class Entry:
    """Where a command lives: an attribute of a module, a Typer group or a function."""

    module: str
    attribute: str
    help: str


COMMANDS: dict[str, Entry] = {
    "init": Entry("cli.init", "init", "Make a new site directory with keys, store and catalogue."),
    "serve": Entry("cli.serve", "serve", "Run the control server of a site."),
    "image": Entry("cli.image", "app", "Build, list, show, verify, restore, push, pull, export releases; make deltas."),
    "trust": Entry("cli.trust", "app", "Keys and signatures: show, rotate, add, remove, refresh."),
    "recovery": Entry("cli.recovery", "app", "Build, list the recovery images, see what is in one."),
    "host": Entry("cli.host", "app", "The machines: add, enrol, list, show, order, rescue."),
    "precious": Entry("cli.precious_archive", "app", "What survives, by which rule; second copies of it."),
    "plan": Entry("cli.plan", "plan", "How far apart, how long, how many at risk."),
    "rollout": Entry("cli.rollout", "app", "Start, list, watch, pause, abort rollouts."),
    "ticket": Entry("cli.ticket", "app", "Get, return, renew tickets."),
    "lab": Entry("cli.lab", "app", "Virtual machines and networks to try it all."),
}
"""Every command of `reroot`, in the order in which help shows them."""


class LazyGroup(TyperGroup):
    """Imports a command's module when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands in the order of COMMANDS."""
        return list(COMMANDS)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the words name; raises UsageError with the nearest one that there is."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise UsageError(f"there is no command {args[0]!r}; "
                             + hint(args[0], COMMANDS, "`reroot --help` shows what there is"))
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return one command, or None."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        found = getattr(importlib.import_module(entry.module), entry.attribute)
        holder = typer.Typer(add_completion=False)
        if isinstance(found, typer.Typer):
            holder.add_typer(found, name=cmd_name)
            command = get_group(holder).commands[cmd_name]
        else:
            holder.command(name=cmd_name)(found)
            command = get_command(holder)
        command.short_help = entry.help
        return command


app = typer.Typer(cls=LazyGroup, add_completion=False, no_args_is_help=True,
                  help="Give every machine of a fleet a new root filesystem, and lose nothing precious.")


@app.callback()
def _root() -> None:
    """Give every machine of a fleet a new root filesystem, and lose nothing precious."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors are printed, not raised."""
    as_json = "--json" in arguments
    try:
        code = _run(arguments, as_json=as_json)
        print(end="", flush=True)  # what cannot be written is noticed here, or by nobody
    except BrokenPipeError:
        sys.stdout = None  # the reader went away, as `| head` does
        return 141
    except OSError as error:
        sentence = console.unwritten(error)
        sys.stdout = None
        _complain(Kind.DISK, sentence, as_json=as_json)
        return EXIT_CODES[Kind.DISK]
    return code


def _run(arguments: Sequence[str], *, as_json: bool) -> int:
    try:
        result = get_command(app)(args=list(arguments), prog_name="reroot", standalone_mode=False)
    except RerootError as error:
        _complain(error.kind, error.sentence, as_json=as_json)
        return error.exit_code
    except typer.Exit as leaving:
        return leaving.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except typer.TyperException as error:  # a wrong option or argument
        if sentence := console.usage(error):
            _complain(Kind.USAGE, sentence, as_json=as_json)
        return EXIT_CODES[Kind.USAGE]
    return result if isinstance(result, int) else 0


def _complain(kind: Kind, sentence: str, *, as_json: bool) -> None:
    # What a host or a server said of itself may be in it, and must not reach the terminal as it is.
    line = json.dumps({"kind": kind.value, "value": sentence}) if as_json else plain(f"reroot: {sentence}")
    print(line, file=sys.stderr)


def main() -> NoReturn:
    """Run `reroot` with the process's arguments."""
    sys.exit(run(sys.argv[1:]))
