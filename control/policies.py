"""Which precious policy a host's next order carries (I/O: reads the site's files; the rules are precious.policy's).

Layers, the later one wins: what reroot ships for the host's distribution, SITE/precious.toml,
SITE/precious/class/NAME.toml for each of the host's classes in hosts.toml's order, SITE/precious/host/NAME.toml. None
of the files need be there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fleet.hosts import Host, Hosts
from plumbing.errors import ConfigError
from plumbing.spelling import hint
from precious import policy


def site_policy(path: Path, os_release: Mapping[str, object] | None = None) -> policy.Policy:
    """Return the rules that every host of a distribution has: the shipped ones, then those of `path`.

    `path` is the site's precious.toml. A distribution that is not known gets Debian's, which name whatever the others
    have too. Raises ConfigError.
    """
    return policy.load([policy.shipped(_family(os_release or {})), *_layer(path)])


def every_rule(path: Path, os_release: Mapping[str, object]) -> policy.Policy:
    """Return those and the rules of all classes and hosts, whoever takes them: to look for patterns that do nothing."""
    return policy.load([policy.shipped(_family(os_release)), *_layer(path),
                        *(layer for file in _files(path) for layer in _layer(file))])


def _family(os_release: Mapping[str, object]) -> str:
    return policy.family(os_release) or policy.FAMILIES[0]


def for_host(path: Path, host: Host, facts: Mapping[str, object]) -> policy.Policy:
    """Return the rules of one host; `path` is the site's precious.toml, `facts` what the host's agent reported.

    Raises ConfigError.
    """
    told = facts.get("os_release")
    folder = path.with_suffix("")
    return policy.load([
        policy.shipped(_family(told if isinstance(told, dict) else {})), *_layer(path),
        *(layer for name in host.classes for layer in _layer(folder / "class" / f"{name}.toml")),
        *_layer(folder / "host" / f"{host.name}.toml")])


def check(path: Path) -> None:
    """Raise ConfigError for the first mistake in any of the site's files."""
    site_policy(path)
    for layer in _files(path):
        policy.load(_layer(layer))


def strays(path: Path, hosts: Hosts) -> list[str]:
    """Return a sentence for every class or host file that nobody in hosts.toml takes."""
    names = {"class": {name for host in hosts.by_name.values() for name in host.classes}, "host": {*hosts.by_name}}
    return [f"{file}: no host has the {file.parent.name} {file.stem!r}; "
            + hint(file.stem, sorted(names[file.parent.name]), "it is used for nothing")
            for file in _files(path) if file.stem not in names[file.parent.name]]


def _files(path: Path) -> list[Path]:
    folder = path.with_suffix("")
    return [file for kind in ("class", "host") for file in sorted((folder / kind).glob("*.toml"))]


def _layer(path: Path) -> list[tuple[str, str]]:
    try:
        return [(str(path), path.read_text("utf-8"))]
    except FileNotFoundError:
        return []  # no layer need be there
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); it must be UTF-8 text this user may read") from error
