"""reroot.toml: its sentences, and that docs/config.md describes every key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from control.config import Config, parse
from control.site import CONFIG_EXAMPLE
from plumbing.errors import ConfigError

DOCS = Path(__file__).resolve().parents[3] / "docs/config.md"
FILE = Path("/site/reroot.toml")
MINIMAL = '[server]\npublic_url = "http://c:8080"\n'
RANGE = MINIMAL + "[[dhcp.subnet]]\ninterface='a'\nnetwork='10.0.0.0/8'\nserver='10.0.0.1'\n"


def test_example_and_defaults() -> None:
    config = parse(CONFIG_EXAMPLE.format(public_url="http://control.example.org:8080"), FILE)
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
    (f"{RANGE}first='10.0.0.2'\nlast='10.0.255.254'", ("line 3", "4096")),
    (f"{RANGE}first='10.0.0.9'\nlast='10.0.0.2'", ("4096",)),
    (f"{RANGE}first='10.0.0.9'", ("both first and last",)),
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


def test_every_key_is_documented_and_nothing_else_is() -> None:
    documented = set(re.findall(r"^\| `([a-z_.]+)` \|", DOCS.read_text(), re.MULTILINE))
    assert documented == set(keys(Config, ""))


def keys(model: type[BaseModel], prefix: str) -> list[str]:
    from control.config import _model_of

    found = []
    for name, field in model.model_fields.items():
        try:
            inner = _model_of(field.annotation)
        except TypeError:
            inner = next((part for part in getattr(field.annotation, "__args__", ())
                          if isinstance(part, type) and issubclass(part, BaseModel)), None)
        found += keys(inner, f"{prefix}{name}.") if inner else [f"{prefix}{name}"]
    return found
