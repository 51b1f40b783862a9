"""Every kind of error has one exit code, and docs/commands.md says which."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from plumbing.errors import EXIT_CODES, Kind, RerootError, from_wire

DOCS = Path(__file__).resolve().parents[3] / "docs/commands.md"


def test_the_documented_exit_codes_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (\d+) \| `([a-z_]+)` \| .+ \|$", DOCS.read_text(), re.MULTILINE)
    assert [(int(code), kind) for code, kind in rows] == [(code, kind.value) for kind, code in EXIT_CODES.items()]


def test_every_kind_has_a_code_of_its_own() -> None:
    assert set(EXIT_CODES) == set(Kind)
    assert len(set(EXIT_CODES.values())) == len(Kind)


@pytest.mark.parametrize("kind", Kind)
def test_an_error_keeps_its_kind_on_the_wire(kind: Kind) -> None:
    error = from_wire(kind.value, "a sentence")
    assert (error.kind, error.sentence, error.exit_code) == (kind, "a sentence", EXIT_CODES[kind])
    assert type(from_wire("unheard-of", "a sentence")) is RerootError
