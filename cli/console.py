"""How commands speak: columns, and from an error to a sentence and an exit code. I/O: stdout, stderr, exit."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import typer
from typer.main import get_command

from plumbing.errors import EXIT_CODES, Kind, RerootError
from recovery.log import plain


def columns(rows: Sequence[Sequence[str]]) -> None:
    """Print rows with every column as wide as its widest word."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def size(count: int) -> str:
    """Return bytes in decimal units, as disks are sold."""
    amount, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def usage(error: typer.TyperException) -> str:
    """Return the sentence for a wrong command line; empty when the help was shown already, as for no words at all."""
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", Path(sys.argv[0]).name)
    told = error.format_message().rstrip(".")
    return f"{told}; `{path} --help` shows what it takes" if told else ""


def unwritten(error: OSError) -> str:
    """Return the sentence for output that could not be written; raises `error` when it is about something else."""
    if error.filename is not None:
        raise error
    return f"standard output cannot be written ({error.strerror}); make room there, or send it elsewhere"


def finish(script: typer.Typer) -> NoReturn:
    """Run `script` and exit: 0, or the code of the error it raised after printing its sentence; 130 after ^C."""
    name = Path(sys.argv[0]).name
    code = 0
    try:
        left = get_command(script)(prog_name=name, standalone_mode=False)
        code = left if isinstance(left, int) else 0  # of a typer.Exit
        print(end="", flush=True)  # what cannot be written is noticed here, or by nobody
    except RerootError as error:
        print(plain(f"{name}: {error.sentence}"), file=sys.stderr)
        code = error.exit_code
    except typer.Exit as leaving:
        code = leaving.exit_code
    except typer.TyperException as error:
        print(f"{name}: {usage(error)}", file=sys.stderr)
        code = EXIT_CODES[Kind.USAGE]
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        sys.stdout = None
        code = 141
    except OSError as error:
        sentence = unwritten(error)
        sys.stdout = None
        print(f"{name}: {sentence}", file=sys.stderr)
        code = EXIT_CODES[Kind.DISK]
    sys.exit(code)
