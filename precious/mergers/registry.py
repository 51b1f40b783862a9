"""All mergers by the name that a rule calls them by. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from precious import accounts
from precious.mergers import alternatives, crontab, fstab, hosts, statoverride, units
from precious.mergers.sides import Fate, Merge, Merged, Nodes, Told, each
from precious.mergers.world import World

ACCOUNTS = "accounts"
"""The merger of users and groups. Kept files follow what it does to ids, so `precious.names` calls it, not this."""


@dataclass(frozen=True)
class Merger:
    """A merger, and what the paths begin with that it may be named for; it knows no other kind of file."""

    merge: Merge
    below: tuple[str, ...] = ()

    def takes(self, glob: str) -> bool:
        """Tell whether a rule may name this merger for a glob."""
        return not self.below or any(glob == top or (top.endswith("/") and glob.startswith(top)) for top in self.below)


def _accounts(host: Nodes, image: Nodes, base: Nodes, world: World) -> Merged:
    names = {b"etc/" + name.encode(): name for name in accounts.FILES}
    sides = [{names[path]: node for path, node in side.items() if path in names and isinstance(node, bytes)}
             for side in (host, image, base)]
    merged = accounts.merge(sides[0], sides[1], base=sides[2], has=world.starts)
    told = ((Fate.NOTE, merged.notes), (Fate.CONFLICT, merged.conflict), (Fate.DROPPED, merged.dropped))
    return Merged({path: merged.files[name] for path, name in names.items() if name in sides[0]},
                  tuple(Told(b"etc/passwd", fate, b"", row) for fate, rows in told for row in rows))


MERGERS = {
    ACCOUNTS: Merger(_accounts, tuple(f"/etc/{name}" for name in accounts.FILES)),
    "alternatives": Merger(alternatives.merge, ("/etc/alternatives/", "/var/lib/dpkg/alternatives/")),
    "crontab": Merger(each(crontab.merge)),
    "fstab": Merger(each(fstab.merge, outright=False)),
    "hosts": Merger(each(hosts.merge, outright=False)),
    "statoverride": Merger(each(statoverride.merge), (f"/{statoverride.PATH.decode()}",)),
    "units": Merger(units.merge, ("/etc/systemd/system/", "/etc/systemd/user/")),
}
