import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbing.errors import ConfigError
from throttle import tickettab_toml
from throttle.tickettab import Adaptive, Provider, Service, parse, unknown

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
    ("service dump 10\n\nmil_ton 8_", 3, "'8_'"),
    ("service dump 10\nmilton 99999999999999999999", 2, "'99999999999999999999'"),
    ("service dump -5", 1, "'-5'"),
    ("service dump 10\nmilton -1", 2, "'-1'"),
    ("service dump 10\nmilton 1000001", 2, "'1000001'"),
    ("service dump 10\nmilton", 2, "'milton'"),
    ("service dump 10\nmilton 8 9", 2, "'9' is a word too many"),
    ("servce dump 10", 1, "'servce' is not `service`"),
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
        assert all(p.name and "/" not in p.name and p.slots >= 0 for p in service.providers)


MORE = """\
[service.root-dump]
lifetime_s = 3600
bandwidth = 12_500_000
offer_slots = 2
adaptive = { least = 2, most = 40, low = 0.5 }
provider.hasbro = 4

[service.root-dump.provider.milton]
slots = 8
health = "http://milton:8081/healthz"
"""


def test_toml_has_more_words() -> None:
    assert tickettab_toml.parse(MORE) == {"root-dump": Service(
        "root-dump", 3600, (Provider("hasbro", 4), Provider("milton", 8, "http://milton:8081/healthz")), 12_500_000, 2,
        Adaptive(2, 40, 0.5))}
    assert tickettab_toml.parse("") == {}


@pytest.mark.parametrize(("old", "new", "line", "word"), [
    ("lifetime_s = 3600", "", 1, "'root-dump'"),
    ("lifetime_s = 3600", "lifetime_s = 0", 2, "0 must"),
    ("lifetime_s = 3600", "lifetime_s = -1", 2, "-1 must"),
    ("lifetime_s = 3600", "lifetime_s = true", 2, "True must"),
    ("lifetime_s = 3600", "lifetime_s = \"4h\"", 2, "'4h' must"),
    ("12_500_000", "10_000_000_000_000", 3, "10000000000000 must"),
    ("12_500_000", "64_000", 3, "64000 must be a whole number from 131072"),
    ("bandwidth", "bandwith", 3, "did you mean 'bandwidth'"),
    ("offer_slots = 2", "offer_slots = 1.5", 4, "1.5 must"),
    ("least = 2", "least = 41", 5, "40 must be a whole number from 41"),
    ("low = 0.5", "low = 0.95", 5, "low = 0.95 must be less than high = 0.9"),
    ("low = 0.5", "low = nan", 5, "nan must"),
    ("least = 2, ", "", 5, "'least'"),
    ("provider.hasbro = 4", "provider.hasbro = -4", 6, "-4 must"),
    ("provider.hasbro = 4", "provider.hasbro = 1000001", 6, "1000001 must"),
    ('provider.hasbro = 4', 'provider."a/b" = 4', 6, "'a/b'"),
    ("slots = 8", "slot = 8", 9, "did you mean 'slots'"),
    ("slots = 8", "", 8, "'milton'"),
    ("http://milton:8081/healthz", "ftp://milton", 10, "'ftp://milton'"),
    ("http://milton:8081/healthz", "tcp://milton", 10, "'tcp://milton'"),
])
def test_a_mistake_in_toml_is_named_by_file_line_and_word(old: str, new: str, line: int, word: str) -> None:
    text = MORE.replace(old, new, 1)
    assert text != MORE
    with pytest.raises(ConfigError) as caught:
        tickettab_toml.parse(text, "site/tickettab.toml")
    assert caught.value.sentence.startswith(f"site/tickettab.toml line {line}: ")
    assert word in caught.value.sentence


def test_toml_that_is_none_says_where() -> None:
    with pytest.raises(ConfigError, match=r"site/tickettab.toml is not TOML: .*line 1"):
        tickettab_toml.parse("service dump 60", "site/tickettab.toml")


def test_an_unknown_service_is_answered_with_the_known_ones_and_the_nearest() -> None:
    assert unknown("hpux_patches", parse(PAPER), "tickettab") == (
        "there is no service 'hpux_patches'; tickettab defines hp-ux_patches, xv; did you mean 'hp-ux_patches'?")
    assert unknown("quite-other", parse(PAPER), "tickettab") == (
        "there is no service 'quite-other'; tickettab defines hp-ux_patches, xv")
    assert unknown("x", {}, "tickettab") == "there is no service 'x'; tickettab defines none"
