"""Root trees into releases, and releases back into root trees.

Building, in the order in which the data meets the modules: a tree is walked into entries (`entry`, `excludes`,
`scan`; `sizing` tells beforehand how much it is), each becomes a tar header and its content (`tarstream`), the stream
is cut into independent zstd frames (`frames`), those of an earlier release taken as they are (`reuse`), entries and
frames make the index (`index`), and the whole becomes an OCI manifest (`release`) in an OCI layout (`store`).
`capture` drives them. `catalogue` signs the name of what was made with the keys of `keyring`, after `metadata` has
checked what is there; `ceremony` changes the keys; `audit` reads a stored release back. `root_sources` has the tree
that a tar, a disk image or an OCI image holds. `needed` says what of a store may go, `garbage` takes it out. Between
stores: what travels with a release (`bundle`), a registry (`registry_auth`, `registry`), sending and receiving
(`transfer`), folders and archives (`layouts`).

Restoring: `trusted` yields a manifest that the site's keys vouch for; `sources`, `registry_source` and `rebuild` have
frames, `fetch` and `ahead` bring them and believe no source; `restore` makes the tree, `verify` reads it back from the
disk; `footprint` says what it takes.

Deltas: `delta_match` finds an old file like each new one, `delta_build` packs the new with the old as dictionary
(`repack` takes gzip files apart, `delta_index` writes the index so that little of it changes), `delta` and
`delta_manifest` are what is written; `delta_apply` gives a restore the new files out of the old (`file_contents`).

`recovery_image` builds what a host boots to do that; `recovery_manifest` says what is in it. Nothing in this room
talks to a host.
"""
