"""Large gzip files packed again by the gzip that made them: the new release's own. I/O: runs that program.

zlib ends its blocks elsewhere than GNU gzip, so what gzip made of a long payload no library makes again. The release
that holds such a file mostly holds the program too, its loader and its libc: they are taken out of it, each checked
against the index that the site signed, put into a folder of their own and run there, from standard input to standard
output. Nothing of a living root is ever run.
"""

from __future__ import annotations

import os
import re
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import Popen

from imaging.entry import Entry
from imaging.repack import header_length
from plumbing.errors import CommandError, CorruptError
from plumbing.run import spawn

PATIENCE_S = 600.0
"""How long one file may take to be packed."""
READ_BYTES = 256 << 10

_PROGRAMS = (b"usr/bin/gzip", b"bin/gzip")
_LOADER = re.compile(rb"(?:usr/)?lib(?:64)?/(?:[a-z0-9_-]+/)?ld(?:-linux[a-z0-9_-]*)?(?:-[0-9.]+)?\.so(?:\.\d+)?")
_LIBC = re.compile(rb"(?:usr/)?lib(?:64)?/(?:[a-z0-9_-]+/)?libc\.so\.6")


def program_rows(files: Sequence[Entry]) -> dict[str, int] | None:
    """Return the numbers of the files that gzip is made of, by the names they are run under; None without them."""
    by_path = {entry.path: row for row, entry in enumerate(files)}
    program = next((by_path[path] for path in _PROGRAMS if path in by_path), None)
    loader = next((row for path, row in by_path.items() if _LOADER.fullmatch(path)), None)
    libc = next((row for path, row in by_path.items() if _LIBC.fullmatch(path)), None)
    if program is None or loader is None or libc is None:
        return None
    return {"gzip": program, "loader": loader, "libc.so.6": libc}


class Packer:
    """gzip in a folder of its own; a context manager, used from several threads."""

    def __init__(self, parts: Mapping[str, bytes]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="reroot-gzip-")
        self._top = Path(self._folder.name)
        self._top.chmod(0o711)  # it runs as nobody
        for name, data in parts.items():
            handle = os.open(self._top / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o555)
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                os.fchmod(handle, 0o555)

    def close(self) -> None:
        """Remove the folder; nothing may be running."""
        self._folder.cleanup()

    def pack(self, payload: Iterable[bytes], level: int, header: bytes) -> Iterator[bytes]:
        """Yield the gzip file of a payload, with `header` in place of the program's own.

        Raises CorruptError when the program can't be run here or fails, and what `payload` raises.
        """
        with tempfile.TemporaryFile() as errors:
            argv: list[str | Path] = [self._top / "loader", "--library-path", self._top, self._top / "gzip", "-n",
                                      f"-{level}"]
            try:
                process = spawn(argv, errors=errors, pipes=True, cwd=self._top, env={"LC_ALL": "C"},
                                powerless=True)
            except CommandError as error:
                raise CorruptError(f"the release's gzip can't be run here: {error.sentence}") from error
            feeder = _Feeder(process, payload)
            watch = threading.Timer(PATIENCE_S, _end, [process])
            watch.start()
            feeder.start()
            try:
                yield from _with_header(_output(process), header)
                feeder.join()
                if feeder.failure is not None:
                    raise feeder.failure
                if process.wait() != 0:
                    raise CorruptError(f"the release's gzip ended with status {process.returncode}")
            finally:
                watch.cancel()
                _end(process)
                process.wait()
                assert process.stdout is not None
                process.stdout.close()
                feeder.join()


def _end(process: Popen[bytes]) -> None:
    """Kill the program and what it started: it leads a session of its own, and nobody has waited for it yet."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


class _Feeder(threading.Thread):
    """Writes the payload into the program; what went wrong on the way is in `failure`."""

    def __init__(self, process: Popen[bytes], payload: Iterable[bytes]) -> None:
        super().__init__(name="feed gzip", daemon=True)
        self._process = process
        self._payload = payload
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Write everything, then close."""
        assert self._process.stdin is not None
        try:
            for piece in self._payload:
                view = memoryview(piece)
                while view:
                    view = view[self._process.stdin.write(view):]
        except BrokenPipeError:
            pass  # it ended early, and its status says why
        except BaseException as error:  # raised again by whoever reads the output
            self.failure = error
        finally:
            self._process.stdin.close()


def _output(process: Popen[bytes]) -> Iterator[bytes]:
    assert process.stdout is not None
    while data := process.stdout.read(READ_BYTES):
        yield data


def _with_header(output: Iterator[bytes], header: bytes) -> Iterator[bytes]:
    head = b""
    for data in output:
        head += data
        if len(head) >= 10:
            break
    try:
        start = header_length(head)
    except ValueError as error:
        raise CorruptError("the release's gzip writes something else than gzip files") from error
    yield header + head[start:]
    yield from output
