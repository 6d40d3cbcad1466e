"""Content negotiation, by RFC 9110."""

import pytest

from service.errors import NotAcceptableError
from service.web.media_types import JSON, NPY, PNG
from service.web.negotiation import negotiate


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/json", JSON),
        ("Application/X-NPY", NPY),
        ("application/x-npy, application/json;q=0.5", NPY),
        ("application/*;q=0.2, image/png;q=0.9", PNG),
        ("image/*", PNG),
        ("*/*, application/json;q=0.1", NPY),
        ("text/html, */*;q=0.1", JSON),
        ("application/json;q=0, */*", NPY),
    ],
)
def test_the_best_liked_type_is_chosen(accept, expected):
    assert negotiate(accept, (JSON, NPY, PNG)) == expected


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "application/json;q=x", "nonsense", "*/*;q=0"])
def test_no_accepted_type_is_refused(accept):
    with pytest.raises(NotAcceptableError, match="application/json"):
        negotiate(accept, (JSON,))
