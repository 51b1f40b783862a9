"""What a host must not lose: which files, kept how, and what became of each.

In: the old root, a policy (TOML layers). Out: an archive on /local, the same files in the new root, a report.
The data meets the modules in this order:

1. `policy`   rules from shipped defaults, site, class and host, merged into one list (pure)
2. `keep`     select from the old root, write the archive with its digests, read it back
3. `unlisted` files nobody listed and no package owns: kept in the archive, never put back unasked
4. `accounts` users, passwords and groups of two systems merged into one (pure)
5. `putback`  each kept entry into the new root, conflicts decided by policy, every one reported
6. `archives` those of earlier upgrades, of which the newest few stay

Nothing here knows whether it runs in recovery, on a living host or in a test: roots are paths.
"""
