"""What a host must not lose: which files, kept how, and what became of each.

In: the old root, a policy (TOML layers). Out: an archive on /local, the same files in the new root, a report.
The data meets the modules in this order:

1. `policy`       rules from shipped defaults, site, class and host, merged into one list; `rules` one of them as it is
                  written, `conditions` what it asks besides names (pure)
2. `inquiry`      what conditions ask of the old root, of `packages` too; `circumstances` the answers (pure)
   `unlisted`     files nobody listed and no package owns: kept in the archive, never put back unasked
   `losses`       what of a living root an upgrade would lose, in findings for a person (pure); `losswalk` looks for it
3. `detours`      patterns that would keep nothing because their way leads through a link
4. `flags`        inode flags, which no archive holds: told
5. `selection`    what is kept of the old root, from the four above
6. `returning`    what of it goes to the new root (pure)
7. `base`         what the release that the host was installed from had where rules merge (pure)
   `keep`         write the archive with its digests, read it back from the disk; the base beside it
8. `subids`, `accounts`  users, passwords, groups and their ranges of two systems merged into one (pure)
   `mergers/`     other files that host and image both have a say in (pure)
9. `acl`, `names`  whose the kept files are then (pure)
10. `merging`     what the mergers that rules name make of both sides (pure); `mergedfiles` puts that in place of the
                  image's, `overrides` gives files the owners and modes that a merged statoverride says
11. `place`       each kept entry into the new root, conflicts decided by policy, and read back
12. `putback`     8 to 11 in their order, every entry reported
13. `archives`    those of earlier upgrades, of which the newest few stay

Beside that way, after 7: `second_copy` says whether a copy goes to the control server and how long it stays (pure),
`sealed` is its format (pure), `sealkeys` whose keys open it, `sealing` makes it of an archive and an archive of it,
`extracting` takes single files out of one.

Nothing here knows whether it runs in recovery, on a living host or in a test: roots are paths.
"""
