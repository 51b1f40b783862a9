"""The rules of a session: both ends agree, and nothing of a request can be changed."""

from __future__ import annotations

import base64
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbing import session
from plumbing.errors import TrustError, UsageError
from plumbing.session import Secret

IDENTITY = "abcdefghijklmnop"
WORD = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1)
REQUEST = st.tuples(st.sampled_from(["GET", "POST", "DELETE"]), WORD, st.integers(1, 10**16 - 1).map(str),
                    st.binary())


def agreed(host: str = "alpha", there: str = "alpha", identity: str = IDENTITY) -> tuple[Secret, Secret]:
    """Return what a host and a server make of each other's keys when each thinks so of the host and the identity."""
    ours, theirs = session.new_key(), session.new_key()
    publics = session.public_of(ours), session.public_of(theirs)
    return (session.agree(ours, publics[1], host, IDENTITY, publics),
            session.agree(theirs, publics[0], there, identity, publics))


def test_both_ends_have_the_same_secret_and_every_session_another() -> None:
    host, server = agreed()
    request = ("POST", "/x", "1", b"body")
    assert host.digest(*request) == server.digest(*request)
    assert server.holds(host.digest(*request), *request)
    assert agreed()[0].digest(*request) != host.digest(*request)


@pytest.mark.parametrize("other", [{"there": "beta"}, {"identity": IDENTITY[::-1]}])
def test_the_secret_is_bound_to_the_host_and_the_identity(other: dict[str, str]) -> None:
    host, server = agreed(**other)
    assert host.digest("POST", "/x", "1", b"") != server.digest("POST", "/x", "1", b"")


def test_a_key_swapped_on_the_way_leaves_the_ends_without_a_common_secret() -> None:
    host, server, middle = (session.new_key() for _ in range(3))
    publics = session.public_of(host), session.public_of(server)
    swapped = session.public_of(middle)
    at_host = session.agree(host, swapped, "alpha", IDENTITY, (publics[0], swapped))
    at_server = session.agree(server, publics[0], "alpha", IDENTITY, publics)
    in_the_middle = session.agree(middle, publics[0], "alpha", IDENTITY, (publics[0], swapped))
    request = ("POST", "/x", "1", b"")
    assert at_host.digest(*request) == in_the_middle.digest(*request)
    assert at_host.digest(*request) != at_server.digest(*request)


@given(REQUEST, REQUEST)
def test_no_two_requests_have_one_digest(one: tuple[str, str, str, bytes], other: tuple[str, str, str, bytes]) -> None:
    secret = Secret(bytes(32))
    assert (secret.digest(*one) == secret.digest(*other)) == (one == other)


@given(REQUEST)
def test_what_is_said_is_read_back(request: tuple[str, str, str, bytes]) -> None:
    method, target, count, body = request
    secret = Secret(os.urandom(32))
    value = session.speak(secret, IDENTITY, int(count), method, target, body)[session.HEADER]
    identity, told, digest = session.read(value)
    assert (identity, told) == (IDENTITY, count)
    assert secret.holds(digest, method, target, count, body)


@given(st.text())
def test_anything_else_is_refused(value: str) -> None:
    with pytest.raises(TrustError):
        session.read(value)


@pytest.mark.parametrize("value", [f"{identity} {count} {digest}" for identity, count, digest in [
    *((IDENTITY, count, "0" * 32) for count in ("0", "01", "-1", "+1", "\u0661", "9" * 17, "", " 1", "1 ")),
    *((IDENTITY, "1", digest) for digest in ("0" * 31, "0" * 33, "A" * 32, "0" * 32 + "\n", "")),
    *((identity, "1", "0" * 32) for identity in (f"{IDENTITY}x", IDENTITY[1:], f"{IDENTITY[1:]}.", f" {IDENTITY}"))]])
def test_what_is_nearly_right_is_refused(value: str) -> None:
    with pytest.raises(TrustError):
        session.read(value)


@pytest.mark.parametrize("public", ["", "x", "AAAA", base64.b64encode(bytes(32)).decode(),  # of low order
                                    base64.b64encode(b"\1" + bytes(31)).decode(), base64.b64encode(bytes(33)).decode()])
def test_a_key_that_is_none_is_refused(public: str) -> None:
    with pytest.raises(UsageError, match="X25519"):
        session.agree(session.new_key(), public, "alpha", IDENTITY, (public, public))
