"""What a release can be made from: a directory, a tar, a partition of a disk image, an OCI image in a layout.

Text comes in, as a person writes it after `reroot image build`; a root tree that can be read comes out, for as long
as its source is open. `choose` tells what the text names; `directory`, `tarball`, `disk` (with `partitions`) and
`oci` (with `oci_layout`, `oci_layers`, `inside`) open one kind each; `architecture` looks into the tree; `scratch` is
where those put things that have to unpack first, and nothing is written anywhere else. What is opened is material from
strangers: names in it are never followed out of the tree, and no program in it is run.

Needs the builder's programs (tar, mount, sfdisk, blkid, qemu-img) where it says so; never part of a host.
"""
