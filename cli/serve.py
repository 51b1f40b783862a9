"""`reroot serve`: the control server, in the foreground. I/O: all of control.serve."""

from __future__ import annotations

from cli.admin import SITE, SiteOption


def serve(site: SiteOption = SITE) -> None:
    """Run the control server of a site until SIGTERM or ^C."""
    from control import serve as server

    server.main(site)
