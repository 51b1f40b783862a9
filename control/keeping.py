"""What of the store a site still needs: catalogue, orders, rollouts, hosts.toml. I/O: reads them, decides nothing.

An order counts until it is over *and* has expired: a host that kept a copy could carry it out until then.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from control import config
from control.database import Database, OrderRow, RolloutRow, url_for
from control.progress import OPEN_STATES
from control.site import Site
from fleet import hosts
from imaging.catalogue import Catalogue
from imaging.needed import Need
from plumbing.errors import DiskError
from rollout.executor import FINAL

CATALOGUE = "the catalogue lists "
"""How the reason begins of what is only listed."""


def needs(site: Site, now: float) -> list[Need]:
    """Return what must stay in the site's store at `now` (wall seconds), each with its reason.

    Raises whatever keeps one of the four from being read: what is not known to be unneeded must not go.
    """
    listed = Catalogue(site.catalogue, site.keys).listed()
    found = [Need(one.digest, f"{CATALOGUE}{path}") for path, one in listed.items()]
    for host in hosts.load(site.hosts).by_name.values():
        if host.recovery:
            found.append(Need(_recovery(host.recovery), f"hosts.toml names it for {host.name}"))
    return found + _under_way(site, now)


def _under_way(site: Site, now: float) -> list[Need]:
    configured = config.load(site.config).server.database
    if not configured and not site.database.exists():
        return []  # no server ever ran here
    database = Database(url_for(site.database, configured))
    try:
        with database.reading() as session:
            orders = session.scalars(select(OrderRow).where(
                OrderRow.state.in_(OPEN_STATES) | (OrderRow.expires_s > now))).all()
            rollouts = session.scalars(select(RolloutRow).where(RolloutRow.status.not_in(FINAL))).all()
    except SQLAlchemyError as error:
        raise DiskError(f"the server's database {database.name} cannot be read, so nobody knows which orders are open; "
                        "nothing was removed; check it and try again") from error
    finally:
        database.close()
    found = []
    for order in orders:
        why = f"order {order.id} for {order.host} ({order.state})"
        found += [Need(what, why) for what in (order.digest, order.release, order.recovery) if what]
    for row in rollouts:
        why = f"rollout {row.id} ({row.status})"
        found += [Need(str(release), why) for release in [row.spec.get("release")] if release]
        found += [Need(_recovery(str(named)), why) for named in [row.spec.get("recovery")] if named]
    return found


def _recovery(named: str) -> str:
    """Return the ref of a recovery image however it is named."""
    return f"recovery/{named.removeprefix('recovery/').removesuffix('.json')}"
