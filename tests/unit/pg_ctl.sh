#!/bin/sh
# pg_ctl of the newest PostgreSQL that is installed, as a user that is not root: the server refuses to run as root.
# The user keeps root's right to pass folders, for pytest's belong to root alone.
set -eu
pg_ctl=$(ls -d /usr/lib/postgresql/*/bin/pg_ctl | sort -V | tail -n 1)
[ "$(id -u)" = 0 ] || exec "$pg_ctl" "$@"
caps=+dac_override,+dac_read_search
exec setpriv --reuid=postgres --regid=postgres --clear-groups --inh-caps="$caps" --ambient-caps="$caps" "$pg_ctl" "$@"
