"""Who we are to a registry: credentials from a file or the environment, what challenges ask. Pure but for `find`.

Never from the command line, which every user of the machine can read. The file is the one that `podman login` and
`skopeo login` write (containers-auth.json(5)). Challenges: RFC 9110 section 11.6.1 and the distribution project's
"Token Authentication Specification".
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from plumbing.errors import ConfigError

USER_VARIABLE, TOKEN_VARIABLE, FILE_VARIABLE = "REROOT_REGISTRY_AUTH", "REROOT_REGISTRY_TOKEN", "REGISTRY_AUTH_FILE"
"""USER:PASSWORD; a bearer token; where the file is. The first that is set wins."""


@dataclass(frozen=True, repr=False)
class Credentials:
    """A user and a password, or a token that is used as it is."""

    user: str = ""
    password: str = ""
    token: str = ""

    def basic(self) -> str:
        """Return the value of an Authorization header of the scheme Basic (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


@dataclass(frozen=True)
class Challenge:
    """What a WWW-Authenticate header asks for; `scheme` in lower case."""

    scheme: str
    parameters: Mapping[str, str]

    def token_query(self, scope: str) -> str:
        """Return the query with which its realm is asked for a token."""
        service = self.parameters.get("service")
        return urlencode([*([("service", service)] if service else []), ("scope", self.parameters.get("scope", scope))])


def challenge(header: str) -> Challenge:
    """Read a WWW-Authenticate header as registries write it: a scheme and quoted parameters."""
    scheme, _, rest = header.strip().partition(" ")
    found = re.findall(r'([A-Za-z]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))', rest)
    return Challenge(scheme.lower(), {key.lower(): re.sub(r"\\(.)", r"\1", quoted) or bare
                                      for key, quoted, bare in found})


def find(host: str, repository: str, environment: Mapping[str, str], file: Path | None = None) -> Credentials | None:
    """Return the credentials for `host` (with its port) and `repository`, None when there are none.

    A `file` that is named, here or in the environment, must be there and readable; raises ConfigError.
    """
    if file is None and (token := environment.get(TOKEN_VARIABLE)):
        return Credentials(token=token.strip())
    if file is None and (both := environment.get(USER_VARIABLE)):
        return _pair(both.strip(), f"the variable {USER_VARIABLE}")
    named = file or (Path(environment[FILE_VARIABLE]) if environment.get(FILE_VARIABLE) else None)
    for path in [named] if named else _usual(environment):
        if named or path.is_file():
            return _from_file(path, host, repository)
    return None


def _usual(environment: Mapping[str, str]) -> Iterator[Path]:
    if folder := environment.get("XDG_RUNTIME_DIR"):
        yield Path(folder) / "containers/auth.json"
    if folder := environment.get("HOME"):
        yield Path(folder) / ".config/containers/auth.json"
        yield Path(folder) / ".docker/config.json"


def _from_file(path: Path, host: str, repository: str) -> Credentials | None:
    try:
        listed = json.loads(path.read_bytes()).get("auths", {})
        words = [host, *repository.split("/")]
        for length in range(len(words), 0, -1):  # the longest name wins, as podman has it
            found = listed.get("/".join(words[:length]))
            if found is not None and found.get("auth"):
                return _pair(base64.b64decode(found["auth"], validate=True).decode(), f"{path}, {host}")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); name the file that `podman login` or `skopeo "
                          "login` wrote") from error
    except (ValueError, AttributeError, TypeError, binascii.Error) as error:
        raise ConfigError(f'{path} is not of the form {{"auths": {{"{host}": {{"auth": "…"}}}}}}; `skopeo login '
                          f"--authfile {path} {host}` writes it") from error
    return None


def _pair(both: str, where: str) -> Credentials:
    user, colon, password = both.partition(":")
    if not colon or not user:
        raise ConfigError(f"{where} does not hold USER:PASSWORD; write both with a colon between them")
    return Credentials(user, password)
