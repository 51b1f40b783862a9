"""The way into a running guest: ssh with the lab's key, through the lab's namespace.

I/O. One master connection for each user of a machine, owned by the lab as a process; commands go through it,
for under TCG a handshake costs seconds. Nothing hides a changed host key: the first key seen is remembered
in a file of the machine's own, and another one raises HostKeyChanged.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from time import sleep

from lab import roots
from lab.network import Network
from lab.process import Process
from plumbing import clock, run
from plumbing.errors import CommandError, NetworkError, TrustError

CONNECT_S = 20
"""How long one attempt to connect may take: a guest under TCG computes a second or two on the handshake."""
_STEP_S = 0.05


class HostKeyChanged(TrustError):  # noqa: N818 - it names what happened, as the other kinds of the hierarchy do
    """The machine shows another ssh host key than it did before."""


def lab_key() -> Path:
    """Return the private key that lab hosts authorize, made at first use; the public one has .pub added."""
    folder = roots.cache_base() / "lab"
    folder.mkdir(parents=True, exist_ok=True)
    key = folder / "key"
    with (folder / "key.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not key.exists():
            run.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "reroot-lab", "-f", key])
    return key


class Ssh:
    """ssh to one address as one user."""

    def __init__(self, network: Network, address: str, user: str, *, known_hosts: Path, socket: Path,
                 log: Path) -> None:
        self._network, self._address, self.user = network, address, user
        self._known_hosts, self._socket, self._log = known_hosts, socket, log
        self._master: Process | None = None

    @property
    def connected(self) -> bool:
        """Whether the master connection stands (as far as its process knows)."""
        return self._master is not None and self._master.running

    def connect(self) -> None:
        """Open the master connection.

        Raises HostKeyChanged, or NetworkError when nobody answers or the login is refused.
        """
        self.close()
        begin = self._log.stat().st_size if self._log.exists() else 0
        argv = ["ssh", "-N", "-M", *self._options(), "-o", "ControlPersist=no", f"{self.user}@{self._address}"]
        self._master = self._network.spawn(argv, log=self._log, name=f"ssh {self.user}@{self._address}")
        deadline = clock.monotonic() + CONNECT_S + 10
        while not self._socket.exists():
            if not self._master.running or clock.monotonic() > deadline:
                self._master.kill()
                raise self._refusal(begin)
            sleep(_STEP_S)

    def run(self, command: str, *, stdin: bytes | None = None, timeout_s: float) -> run.Completed:
        """Run a shell command in the guest and return its status and streams, whatever the status is.

        Raises NetworkError when the connection broke, CommandError when the time is over.
        """
        if not self.connected:
            self.connect()
        done = self._network.run(["ssh", *self._options(), "-o", "ControlMaster=no",
                                  f"{self.user}@{self._address}", "--", command],
                                 stdin=stdin, timeout_s=timeout_s, check=False)
        if done.status == 255 and not self._alive():
            self.close()
            raise NetworkError(f"the ssh connection to {self.user}@{self._address} broke; is the machine still up?")
        return done

    def close(self) -> None:
        """Drop the connection."""
        if self._master is not None:
            self._master.stop(1.0)
            self._master = None
        self._socket.unlink(missing_ok=True)

    def login_command(self) -> list[str]:
        """Return the command line with which a person gets a shell on the machine."""
        words = ["ssh", "-F", "/dev/null", "-i", os.fspath(lab_key()),
                 "-o", f"UserKnownHostsFile={self._known_hosts}", f"{self.user}@{self._address}"]
        return [os.fsdecode(word) for word in self._network.argv(words)]

    def host_keys(self) -> str:
        """Return what is remembered of the machine's host keys (known_hosts lines)."""
        return self._known_hosts.read_text() if self._known_hosts.exists() else ""

    def forget_host_keys(self) -> None:
        """Accept whatever key the machine shows next."""
        self.close()
        self._known_hosts.unlink(missing_ok=True)

    def _alive(self) -> bool:
        if not self.connected:
            return False
        try:
            done = self._network.run(["ssh", *self._options(), "-O", "check", self._address], timeout_s=5, check=False)
        except CommandError:
            return False
        return done.status == 0

    def _options(self) -> list[str]:
        options = {
            "BatchMode": "yes", "IdentitiesOnly": "yes", "StrictHostKeyChecking": "accept-new",
            "UserKnownHostsFile": self._known_hosts, "GlobalKnownHostsFile": "/dev/null", "HashKnownHosts": "no",
            "UpdateHostKeys": "no", "ConnectTimeout": CONNECT_S, "ControlPath": self._socket, "LogLevel": "ERROR",
            "ServerAliveInterval": 10, "ServerAliveCountMax": 3, "KexAlgorithms": "curve25519-sha256",
            "GSSAPIAuthentication": "no",
        }
        words = ["-F", "/dev/null", "-i", os.fspath(lab_key())]
        for name, value in options.items():
            words += ["-o", f"{name}={value}"]
        return words

    def _refusal(self, begin: int) -> CommandError | NetworkError | HostKeyChanged:
        with self._log.open("rb") as log:
            log.seek(begin)
            words = log.read().decode("utf-8", "replace").strip()
        where = f"{self.user}@{self._address}"
        if "HOST IDENTIFICATION HAS CHANGED" in words or "Host key verification failed" in words:
            return HostKeyChanged(f"{self._address} shows another ssh host key than before; if that is wanted, "
                                  "forget the old one")
        last = words.splitlines()[-1] if words else f"no answer within {CONNECT_S + 10} s"
        return NetworkError(f"no ssh to {where}: {last}")
