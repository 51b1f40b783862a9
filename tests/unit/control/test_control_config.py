"""reroot.toml: its sentences, and that docs/config.md describes every key."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import BaseModel

from control.config import Config, check_services, parse
from control.site import config_example
from plumbing.errors import ConfigError

DOCS = Path(__file__).resolve().parents[3] / "docs/config.md"
FILE = Path("/site/reroot.toml")
MINIMAL = '[server]\npublic_url = "http://c:8080"\n'
RANGE = MINIMAL + "[[dhcp.subnet]]\ninterface='a'\nnetwork='10.0.0.0/8'\nserver='10.0.0.1'\n"


def test_example_and_defaults() -> None:
    config = parse(config_example("http://control.example.org:8080"), FILE)
    assert config.content_urls() == ["http://control.example.org:8081"]
    assert config.provider_urls() == {"control": "http://control.example.org:8081"}
    assert parse('[server]\npublic_url = "http://[::1]:80/"\n', FILE).content_urls() == ["http://[::1]:8081"]


@pytest.mark.parametrize(("text", "needles"), [
    ("", ("'server' is missing",)),
    ("[server]\n", ("'server.public_url' is missing",)),
    (MINIMAL + "apii = 1", ("line 3", "did you mean 'api'")),
    (MINIMAL + "[roll]\n", ("line 3", "did you mean 'rollout'")),
    (MINIMAL + "[[dhcp.subnet]]\nintervace = 1", ("line 4", "did you mean 'interface'")),
    (MINIMAL + "[[dhcp.subnet]]\ninterface='a'\nnetwork='10.0.0.0/8'\nserver='10.0.0.1'\n[[dhcp.subnet]]\n"
               "interface='b'\nnetwork='10.0.0.0/8'\nserver='10.0.0.1'\nfrist='10.0.0.2'", ("line 11", "'first'")),
    (MINIMAL + 'api = "8080"', ("line 3", "ADDRESS:PORT")),
    (MINIMAL + 'api = "host:8080"', ("line 3", "server.api")),
    (MINIMAL + "[orders]\nattempts = 0", ("line 4", "orders.attempts")),
    (MINIMAL + "[mail]\ngateways = [{ host = 'a', prot = 25 }]", ("line 4", "did you mean 'port'")),
    (MINIMAL + "[mail]\ngateways = [{ host = 'a', port = 99999 }]", ("line 4", "port")),
    ('[server]\npublic_url = "ftp://x"', ("line 2", "http://name:port")),
    (MINIMAL + "[providers]\nmilton = 'nonsense'", ("line 4", "providers.milton")),
    ("a = 1\nb = \n", ("is not TOML", "line 2")),
    *((MINIMAL + f"[fleetlock.groups.db]\nservice = 'r'\n{keys}\n", ("line 5", *needles)) for keys, needles in (
        ("windows = ['Sat 14:00-Sun 06:00', 'Sta 14:00-15:00']", ("groups.db.windows.1", "'Sta' is no day")),
        ("windows = 'Sat 14:00-15:00'", ("a list in [ ]",)), ("windws = []", ("did you mean 'windows'",)),
        ("zone = 'Europe/Berln'", ("no such time zone",)), ("zone = 'Europe'", ("no such time zone",)),
        ("healthy = 'http://alpha:80/'", ("{host}",)), ("healthy = 'tcp://{host}'", ("tcp://{host}:port",)))),
    (MINIMAL + "[fleetlock.groups]\ndb = 7\n", ("line 4", "the name of a service")),
    (f"{RANGE}first='10.0.0.2'\nlast='10.0.255.254'", ("line 3", "4096")),
    (f"{RANGE}first='10.0.0.9'\nlast='10.0.0.2'", ("4096",)),
    (f"{RANGE}first='10.0.0.9'", ("both first and last",)),
    *((MINIMAL + f"[{section}]\n{key} = {value}\n", ("line 4", f"{section}.{key}")) for section, key, value in (
        ("orders", "lifetime_s", "inf"), ("orders", "deadline_s", "nan"), ("orders", "lifetime_s", "1e300"),
        ("rollout", "tick_s", "inf"), ("rollout", "tick_s", "86401"), ("rollout", "update_time_s", "-inf"),
        ("rollout", "servers", "10000000"), ("rollout", "blast_budget", "10000000"), ("catalogue", "refresh_s", "inf"),
        ("dhcp", "lease_s", "inf"), ("dhcp", "lease_s", "9999999999"), ("tftp", "max_transfers", "9999999"))),
])
def test_sentences(text: str, needles: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, FILE)
    assert "/site/reroot.toml" in caught.value.sentence
    assert all(needle in caught.value.sentence for needle in needles), caught.value.sentence


@pytest.mark.parametrize(("api", "url"), [
    ("0.0.0.0:80", "http://127.0.0.1:80"), ("[::]:80", "http://[::1]:80"), ("127.0.0.2:8080", "http://127.0.0.2:8080"),
    ("10.1.0.1:8080", "http://10.1.0.1:8080"), ("[2001:db8::1]:1", "http://[2001:db8::1]:1"),
])
def test_the_api_on_this_machine(api: str, url: str) -> None:
    assert parse(f'{MINIMAL}api = "{api}"', FILE).server.api_here() == url


@pytest.mark.parametrize(("url", "api", "content"), [
    ("http://h:18080", 18080, 8081), ("http://h", 80, 8081), ("https://h", 8080, 8081), ("http://h:8081", 8081, 8082),
    ("https://h:443/reroot", 8080, 8081), ("http://[::1]:9000/", 9000, 8081),
])
def test_a_new_site_listens_where_its_url_says(url: str, api: int, content: int) -> None:
    server = parse(config_example(url), FILE).server
    assert (server.api, server.content) == (f"0.0.0.0:{api}", f"0.0.0.0:{content}")


def test_services_that_the_tickettab_lacks_are_named() -> None:
    check_services((), ())
    check_services(("root-dump",), ("root-dump", "patches"))
    with pytest.raises(ConfigError, match=r"\[orders\] services names 'rootdump'.* did you mean 'root-dump'\?"):
        check_services(("rootdump",), ("root-dump", "patches"))
    with pytest.raises(ConfigError, match="define it there, or take it out"):
        check_services(("rootdump",), ())


def test_a_group_is_a_service_or_a_table() -> None:
    groups = parse(MINIMAL + "[fleetlock.groups]\na = 'r'\n[fleetlock.groups.b]\nservice = 'r'\n"
                   "windows = ['Sat 14:00-Sun 06:00', '22:00-23:00']\nzone = 'Europe/Berlin'\n", FILE).fleetlock.groups
    assert (groups["a"].service, groups["a"].when.spans) == ("r", ())
    assert (len(groups["b"].when.spans), str(groups["b"].when.zone)) == (8, "Europe/Berlin")


def test_every_key_is_documented_and_nothing_else_is() -> None:
    documented = set(re.findall(r"^\| `([a-z_.]+)` \|", DOCS.read_text(), re.MULTILINE))
    assert documented == set(keys(Config, ""))


def keys(model: type[BaseModel], prefix: str) -> list[str]:
    from control.config import _model_of

    found = []
    for name, field in model.model_fields.items():
        inner: type[BaseModel] | None = None
        with suppress(TypeError):
            inner = _model_of(field.annotation)
        found += keys(inner, f"{prefix}{name}.") if inner else [f"{prefix}{name}"]
    return found
