import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbing.errors import ConfigError
from throttle.tickettab import Provider, Service, parse

PAPER = """\
service hp-ux_patches 14400
milton 8
hasbro 4
tonka 16

service xv 1209600   # a licence pool is a service too
xv 20
"""


def test_the_papers_file() -> None:
    services = parse(PAPER)
    assert services["hp-ux_patches"] == Service(
        "hp-ux_patches", 14400, (Provider("milton", 8), Provider("hasbro", 4), Provider("tonka", 16)))
    assert sum(p.slots for p in services["hp-ux_patches"].providers) == 28
    assert services["xv"].providers == (Provider("xv", 20),)


def test_nothing_is_no_service() -> None:
    assert parse("\n  # only words\n") == {}


@pytest.mark.parametrize(("text", "line", "word"), [
    ("milton 8", 1, "'milton'"),
    ("service dump", 1, "'service dump'"),
    ("service dump 10 20", 1, "'service dump 10 20'"),
    ("service dump 4h", 1, "'4h'"),
    ("service dump 0", 1, "'0'"),
    ("service dump ٣", 1, "'٣'"),
    ("service dump 10\n\nmil_ton 8", 3, "'mil_ton'"),
    ("service dump 10\nmilton -1", 2, "'-1'"),
    ("service dump 10\nmilton 1000001", 2, "'1000001'"),
    ("service dump 10\nmilton", 2, "'milton'"),
    ("service dump 10\nmilton 8 9", 2, "'milton 8 9'"),
    ("service dump 10\n../x 8", 2, "'../x'"),
    ("service dump 10\nmilton 8\nmilton 9", 3, "'milton'"),
    ("service dump 10\nservice dump 10", 2, "'dump'"),
])
def test_a_mistake_is_named_by_file_line_and_word(text: str, line: int, word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "site/tickettab")
    assert caught.value.sentence.startswith(f"site/tickettab line {line}: ")
    assert word in caught.value.sentence


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        services = parse(text)
    except ConfigError:
        return
    for service in services.values():
        assert service.lifetime_s > 0
        assert all("_" not in p.name and p.slots >= 0 for p in service.providers)
