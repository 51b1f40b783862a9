"""From "this host shall have that release" to a signed order on record.

`build` is pure: values in, an Order out. `Issuer` is the I/O round it: catalogue, facts, policy files, key, database.
What a host said of itself (facts) is believed only as far as it harms that host alone: it never names a machine that
hosts.toml gives to another one, and is shown quoted and cut.
"""

from __future__ import annotations

import json
import re
import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from control import book, losses, lossgate, policies
from control.config import Config, MailSection
from control.database import Database, OrderRow
from control.lossgate import Gate, Verdict
from fleet.hosts import Host, Hosts
from imaging import recovery_manifest
from imaging.keys import load_private
from imaging.release import Release
from plumbing import clock
from plumbing.digest import sha256
from plumbing.errors import RefusedError, UsageError
from precious import sealkeys
from precious.policy import Policy
from precious.second_copy import Cause
from recovery import order as orders
from recovery import signed_order
from recovery.order import Order, Target


class UnansweredError(RefusedError):
    """A host would lose something that nobody answered for yet, or nobody knows: its order has to wait."""


MODES = ("upgrade", "install", "rescue")
_ARCH = re.compile(r"[A-Za-z0-9_-]{1,32}")


class Targets(Protocol):
    """What orders need of the catalogue."""

    def read(self, path: str) -> bytes:
        """Return a published target's bytes; raises NotFoundError."""

    def paths(self) -> list[str]:
        """Return the paths of everything published."""


@dataclass(frozen=True)
class Wish:
    """What an administrator or a rollout asks for; None leaves the choice to the site."""

    host: str
    mode: str = "upgrade"
    release: str | None = None
    recovery: str | None = None
    level: str | None = None
    services: tuple[str, ...] | None = None
    lifetime_s: float | None = None
    deadline_s: float | None = None
    replace: bool = False
    rollout: str | None = None


@dataclass(frozen=True)
class Terms:
    """What the site adds to every order; times are wall seconds."""

    control: str
    content: tuple[str, ...]
    mail: MailSection
    attempts: int
    services: tuple[str, ...]
    precious: Mapping[str, object]
    issued_s: float
    expires_s: float


def build(
    wish: Wish, hosts: Hosts, facts: Mapping[str, object], release: Target | None, recovery: Target | None,
    terms: Terms,
) -> Order:
    """Put one order together; raises RefusedError when the host cannot be told exactly what to do."""
    host = hosts.get(wish.host)
    if wish.mode not in MODES:
        raise UsageError(f"an order's mode is one of {', '.join(MODES)}, not {wish.mode!r}")
    draft: dict[str, object] = {
        "spec": 1, "id": str(uuid.uuid4()), "host": host.name, "mode": wish.mode,
        "machine": machine(host, hosts, facts),
        "release": _target_json(release), "recovery": _target_json(recovery),
        "disks": _disks(host, facts) if wish.mode == "upgrade" else None,
        "layout": _layout(host) if wish.mode == "install" else None,
        "precious": dict(terms.precious),
        "services": list(wish.services if wish.services is not None else terms.services),
        "control": terms.control, "content": list(terms.content), "mail": _mail(terms.mail),
        "attempts": terms.attempts, "level": wish.level,
        "issued": clock.iso(terms.issued_s), "expires": clock.iso(terms.expires_s),
        "nonce": secrets.token_urlsafe(24),
    }
    # Read back through the host's own reader: an order it would refuse is never signed.
    return Order.from_json(json.dumps(draft))


def machine(host: Host, hosts: Hosts, facts: Mapping[str, object]) -> dict[str, object]:
    """Return which machine an order for `host` is for; raises RefusedError when that is not known, or is another host.

    The MAC addresses are those of hosts.toml. Only for a host that has none there, they are what it reported itself.
    """
    macs = sorted(set(host.macs) or set(_macs(facts)))
    for mac in macs:
        other = hosts.by_mac.get(mac, host)
        if other.name != host.name:
            raise RefusedError(f"{host.name} reported the MAC address {mac}, which hosts.toml gives to {other.name}; "
                               f"write the addresses of {host.name} into hosts.toml, and look at that machine")
    if not macs and host.serial is None:
        raise RefusedError(f"{host.name} has neither a MAC address nor a serial in hosts.toml and its agent reported "
                           "none; add one, so that no other machine can take the order")
    return {"macs": macs, "serial": host.serial}


def target_path(kind: str, name: str, arch: str | None) -> str:
    """Turn NAME/VERSION[/ARCH] or a whole target path into KIND/NAME/VERSION/ARCH.json; raises UsageError."""
    parts = name.removeprefix(f"{kind}/").removesuffix(".json").split("/")
    if len(parts) == 2 and arch:
        parts.append(arch)
    if len(parts) != 3 or not all(parts) or {".", ".."} & set(parts):
        raise UsageError(f"{name!r} must be written NAME/VERSION/ARCH, such as debian/13.1/amd64")
    return f"{kind}/{'/'.join(parts)}.json"


class Issuer:
    """Makes, signs and records orders for one site."""

    def __init__(self, database: Database, targets: Targets, key_path: Path, policy_path: Path, config: Config) -> None:
        self._database = database
        self.targets = targets
        self._key_path = key_path
        self._policy_path = policy_path
        self._config = config

    def check(self) -> None:
        """Raise ConfigError when the key or the precious policy is wrong, before anybody needs them."""
        load_private(self._key_path)
        policies.check(self._policy_path)

    def policy(self, host: Host) -> Policy:
        """Return the precious policy that an order for `host` carries now; raises ConfigError."""
        return policies.for_host(self._policy_path, host, book.facts_of(self._database, host.name))

    def verdict(self, host: Host, now: float) -> Verdict:
        """Say whether losses stand between `host` and an upgrade."""
        return lossgate.judge(self.policy(host), losses.standing(self._database, host.name), now)

    def gate(self, host: Host, now: float) -> Verdict:
        """Say the same, and ask for a report that is wanted."""
        verdict = self.verdict(host, now)
        if verdict.wants:
            losses.ask(self._database, [host.name], now)
        return verdict

    def _let_through(self, host: Host, now: float) -> dict[str, object]:
        """Return what an order says of accepted losses; raises UnansweredError or RefusedError when it has to wait."""
        verdict = self.gate(host, now)
        if verdict.gate is Gate.REFUSED:
            raise RefusedError(verdict.why)
        if verdict.gate is not Gate.CLEAR:
            raise UnansweredError(verdict.why)
        standing = losses.standing(self._database, host.name)
        return {"baseline": standing.report.baseline if standing.report else "", "findings": sorted(standing.answers())}

    def check_release(self, release: str, recovery: str | None, members: Sequence[Host]) -> None:
        """Raise what `issue` would when some of `members` cannot take this release or its recovery image."""
        checked = set()
        for host in members:
            facts = book.facts_of(self._database, host.name)
            key = (_arch(host.name, facts), host.recovery, memory_bytes(host, facts))
            if key not in checked:
                checked.add(key)
                self._choose(Wish(host.name, release=release, recovery=recovery), host, facts)

    def issue(self, wish: Wish, hosts: Hosts, now: float) -> OrderRow:
        """Sign and record an order; raises what `build` raises, NotFoundError, ConfigError or ConflictError."""
        host = hosts.get(wish.host)
        facts = book.facts_of(self._database, host.name)
        accepted = self._let_through(host, now) if wish.mode == "upgrade" else {}
        release = recovery = None
        if wish.mode != "rescue" or wish.release:
            release, recovery = self._choose(wish, host, facts)
        limits = self._config.orders
        expires_s = now + (wish.lifetime_s or limits.lifetime_s)
        terms = Terms(
            control=self._config.server.public_url, content=tuple(self._config.content_urls()), mail=self._config.mail,
            attempts=limits.attempts, services=limits.services,
            precious={**self._precious(host, facts), "accepted": accepted},
            issued_s=now, expires_s=expires_s)
        order = build(wish, hosts, facts, release, recovery, terms)
        row = OrderRow(
            id=order.id, host=host.name, mode=order.mode, state="active", level=order.level, nonce=order.nonce,
            release=order.release.target if order.release else None,
            digest=order.release.digest if order.release else None,
            recovery=order.recovery.target if order.recovery else None,
            envelope=signed_order.sign(order, load_private(self._key_path)), issued_s=now, expires_s=expires_s,
            changed_s=now,
            deadline_s=now + min(wish.deadline_s or limits.deadline_s, expires_s - now), recovering=False,
            rollout=wish.rollout)
        book.add_order(self._database, row, replace=wish.replace, now=now)
        return row

    def _precious(self, host: Host, facts: Mapping[str, object]) -> dict[str, object]:
        """Return the policy with what the site adds: whose tickets a second copy needs; raises RefusedError."""
        policy = policies.for_host(self._policy_path, host, facts)
        copying, limits = policy.second_copy, self._config.precious
        if copying.when != Cause.NEVER and copying.required and sealkeys.TARGET not in self.targets.paths():
            raise RefusedError(f"{copying.origin or 'the policy'} requires a second copy of what is precious on "
                               f"{host.name}, and this site has no recovery key to encrypt it for; make one with "
                               "`reroot trust recovery-key`")
        services = self._config.orders.services if limits.services is None else limits.services
        return replace(policy, second_copy=replace(copying, services=services)).to_json()

    def _choose(self, wish: Wish, host: Host, facts: Mapping[str, object]) -> tuple[Target, Target]:
        if not wish.release:
            raise UsageError(f"the order for {host.name} names no release; add --release NAME/VERSION/ARCH")
        arch = _arch(host.name, facts)
        path = target_path("releases", wish.release, arch)
        manifest = self.targets.read(path)
        release = Release.parse(manifest)
        if arch is not None and arch != release.arch:
            raise RefusedError(f"{host.name} is {arch} and {path} is for {release.arch}; choose another release")
        named = wish.recovery or host.recovery or release.recovery
        if not named:
            raise UsageError(f"{path} names no recovery image; add --recovery NAME/VERSION/ARCH")
        recovery_path = target_path("recovery", named, release.arch)
        recovery = self.targets.read(recovery_path)
        require_memory(host, facts, recovery_manifest.memory_bytes(recovery), recovery_path)
        return Target(path, sha256(manifest)), Target(recovery_path, sha256(recovery))


def memory_bytes(host: Host, facts: Mapping[str, object]) -> int | None:
    """Return the memory of a host: as its agent reported it, else as hosts.toml has it; None when neither says."""
    told = facts.get("memory_bytes")
    if isinstance(told, int) and not isinstance(told, bool) and told > 0:
        return told
    return orders.size_bytes(host.memory) if host.memory is not None else None


def require_memory(host: Host, facts: Mapping[str, object], needed: int, image: str) -> None:
    """Raise RefusedError for a host that is known to have too little memory to run its recovery image."""
    there = memory_bytes(host, facts)
    if there is not None and there < needed:
        raise RefusedError(f"{host.name} has {there >> 20} MiB of memory and {image} needs {-(-needed >> 20)}; give "
                           "the machine more, or build a smaller recovery image (`reroot recovery ledger`)")


def _target_json(target: Target | None) -> dict[str, str] | None:
    return {"target": target.target, "digest": target.digest} if target else None


def _arch(host: str, facts: Mapping[str, object]) -> str | None:
    """Return the architecture a host reported, None when it did not; raises RefusedError when it cannot be one."""
    arch = facts.get("arch")
    if not isinstance(arch, str):
        return None
    if not _ARCH.fullmatch(arch):
        raise RefusedError(f"{host} reported the architecture {arch[:40]!r}, which is none; look at that machine")
    return arch


def _macs(facts: Mapping[str, object]) -> list[str]:
    links = facts.get("links", [])
    found = [link.get("mac") for link in links if isinstance(link, dict)] if isinstance(links, list) else []
    return [mac.lower() for mac in found if isinstance(mac, str) and orders.MAC.fullmatch(mac.lower())]


def _disks(host: Host, facts: Mapping[str, object]) -> dict[str, object]:
    disks = facts.get("disks")
    if not isinstance(disks, dict):
        raise RefusedError(f"{host.name} has not reported its disks; start its agent, or install it")
    for name in ("root", "boot"):
        if not isinstance(disks.get(name), dict):
            raise RefusedError(f"{host.name} reported no {name} partition; an upgrade needs / and an EFI system "
                               "partition mounted on plain partitions")
    return {name: disks.get(name) for name in ("root", "local", "boot")}


def _layout(host: Host) -> dict[str, object]:
    if host.layout is None:
        raise RefusedError(f"{host.name} has no [host.layout] in hosts.toml; an install needs to know which disk "
                           "it may wipe")
    parts: Sequence[dict[str, object]] = [
        {"name": part.name, "size": part.size, "fs": part.fs} for part in host.layout.partitions]
    return {"disk": {"serial": host.layout.disk}, "firmware": host.firmware, "group": host.layout.group,
            "partitions": list(parts)}


def _mail(mail: MailSection) -> dict[str, object] | None:
    if not mail.gateways or not mail.to:
        return None
    return {"from": mail.sender, "to": list(mail.to),
            "gateways": [{"host": gateway.host, "port": gateway.port} for gateway in mail.gateways]}
