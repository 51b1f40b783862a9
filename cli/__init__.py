"""The `reroot` command: one file per command group, and no rules.

What comes in: words and files of an administrator. What goes out: calls to the rooms below, their answers as text or
JSON, one sentence and an exit code when something is wrong. `main` finds the group; `console` and `admin` are what the
groups share: printing, and asking the control server.
"""
