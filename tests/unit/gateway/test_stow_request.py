from __future__ import annotations

import pytest

from dicom_gateway.stow_request import UnsupportedMediaTypeError, accepts_json, boundary_of


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ('multipart/related; type="application/dicom"; boundary=abc', "abc"),
        ('Multipart/Related; boundary="a b:c"; type=application/dicom', "a b:c"),
        ("multipart/related; boundary=abc", "abc"),
        ("multipart/related", ""),
    ],
)
def test_the_boundary_is_found(content_type, boundary):
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/dicom",
        "multipart/mixed; boundary=abc",
        'multipart/related; type="application/dicom+json"; boundary=abc',
        'multipart/related; type="application/dicom+xml"; boundary=abc',
        ";;;=\x00",
    ],
)
def test_what_is_not_taken_is_told(content_type):
    with pytest.raises(UnsupportedMediaTypeError):
        boundary_of(content_type)


@pytest.mark.parametrize(
    ("accept", "will_do"),
    [
        ("", True),
        ("*/*", True),
        ("application/dicom+json", True),
        ("application/dicom+xml;q=1, application/json;q=0.5", True),
        ("application/dicom+xml", False),
        ("text/html", False),
    ],
)
def test_whether_json_will_do(accept, will_do):
    assert accepts_json(accept) is will_do
