from __future__ import annotations

import base64

import pytest

from dicom_gateway.stow_credentials import StowCredentials, as_ae_title

TOKEN = StowCredentials(token="a-token-for-tests")
BASIC = StowCredentials(user="radiology", password="a-password-for-tests")


def basic(user, password):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_the_token_opens_the_door():
    assert TOKEN.sender_of("Bearer a-token-for-tests") == "STOW"
    assert TOKEN.sender_of("bearer  a-token-for-tests ") == "STOW"


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer x", "a-token-for-tests", "Basic a-token-for-tests", "Bearer é"]
)
def test_nothing_else_does(given):
    assert TOKEN.sender_of(given) is None


def test_a_user_is_let_in_under_its_name():
    assert BASIC.sender_of(basic("radiology", "a-password-for-tests")) == "radiology"


@pytest.mark.parametrize(
    "given",
    [
        basic("radiology", "x"),
        basic("x", "a-password-for-tests"),
        basic("", ""),
        "Basic !",
        "Basic " + base64.b64encode(b"\xff:\xff").decode(),
        "Bearer a-password-for-tests",
    ],
)
def test_name_and_password_must_both_be_right(given):
    assert BASIC.sender_of(given) is None


def test_without_credentials_nobody_is_let_in_unless_everybody_is():
    assert StowCredentials().sender_of("") is None
    assert StowCredentials().sender_of("Bearer ") is None
    assert StowCredentials().sender_of(basic("", "")) is None
    assert StowCredentials(is_anonymous=True).sender_of("") == "STOW"


def test_who_gives_wrong_credentials_is_not_anonymous():
    both = StowCredentials(token="a-token-for-tests", is_anonymous=True)
    assert both.sender_of("Bearer wrong") is None
    assert both.sender_of("") == "STOW"


def test_what_is_asked_for_is_told():
    assert "Bearer" in TOKEN.challenge
    assert "Basic" not in TOKEN.challenge
    assert "Basic" in BASIC.challenge


def test_no_secret_is_shown():
    assert "for-tests" not in f"{TOKEN!r}{BASIC!r}"


@pytest.mark.parametrize(
    ("name", "title"),
    [("radiology", "radiology"), ("a\\b c\n", "abc"), ("x" * 40, "x" * 16), ("é", "STOW")],
)
def test_a_name_becomes_an_ae_title(name, title):
    assert as_ae_title(name) == title
