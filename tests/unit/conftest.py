"""For all unit tests: Hypothesis judges what a rule does, not how long a busy machine takes over it."""

from hypothesis import settings

settings.register_profile("reroot", deadline=None)
settings.load_profile("reroot")
