"""How a host's own file and the new image's become one, by what the file is (pure: bytes in, bytes and notes out).

A rule of the policy names a merger (`merge = "fstab"`). Each takes what it is given of the host, the image and, where
it is known, the host's old release, and returns what belongs into the new root and a Told for whatever a person should
know. For all of them: merging a result again changes nothing, the order of lines stays, no line of the host vanishes
untold unless the host has the whole file just as the old release brought it, and no content makes them raise.

1. `sides`        what goes in and comes out; `world` what the new root holds
2. `lines`        files of lines
3. `fstab`, `hosts`, `crontab`, `statoverride`   one file each
4. `units`, `alternatives`   links, and the files that explain them
5. `registry`     all mergers by name, those of the accounts among them
"""
