"""What a person who misspelt a word may have meant. Pure."""

from __future__ import annotations

from collections.abc import Iterable


def hint(word: str, valid: Iterable[str], otherwise: str = "") -> str:
    """Return the end of a complaint about `word`: the nearest of the `valid` words, else `otherwise` or all of them."""
    import difflib  # late: a host reads its policy on every recovery, and misspells hardly ever

    words = list(valid)
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else otherwise or f"valid here: {', '.join(words)}"
