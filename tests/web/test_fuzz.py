"""Requests of every kind, made from the OpenAPI document by Schemathesis: nothing that is not documented comes back.

`make fuzz` sends thousands of them, `make test` some hundred.
"""

import io
import json
import os
import shutil

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance

from service.files.images import MEDIA_TYPES
from service.settings import Settings
from service.web.app import create_app
from tests.models import digits
from tests.tools import running_service

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "4"))
sent: list[str] = []  # the operation of each request


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def mangled(good):
    """Bytes that are what they should be, cut short, or changed somewhere, or anything."""
    places = st.integers(0, len(good) - 1)
    cut = places.map(lambda place: good[:place])
    changed = st.tuples(places, st.binary(min_size=1, max_size=4)).map(
        lambda change: good[: change[0]] + change[1] + good[change[0] + 1 :]
    )
    return st.one_of(st.just(good), cut, changed, st.binary(max_size=300))


def picture():
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(digits()[0]).save(buffer, format="PNG")
    return buffer.getvalue()


LINES = b"".join(json.dumps(row.reshape(64).tolist()).encode() + b"\n" for row in digits()[:3])
TENSOR = {"name": "rows", "shape": [2, 64], "datatype": "FP32", "parameters": {"binary_data_size": 512}}
schemathesis.openapi.media_type("application/x-npy", mangled(npy(digits()[:2])))
schemathesis.openapi.media_type("application/x-ndjson", mangled(LINES))
schemathesis.openapi.media_type("text/csv", mangled(b"ash,hue\n1,2\n"))
for kind in MEDIA_TYPES:
    schemathesis.openapi.media_type(kind, mangled(picture()))
schemathesis.openapi.media_type(
    "application/octet-stream", mangled(json.dumps({"inputs": [TENSOR]}).encode() + bytes(512))
)


CONFIG = schemathesis.Config.from_dict(
    {"seed": 1, "generation": {"deterministic": True, "max-examples": EXAMPLES, "database": "none"}}
)
schema = schemathesis.openapi.from_dict(create_app(Settings()).openapi(), config=CONFIG)


@pytest.fixture(scope="module")
def address(tiny_store, tmp_path_factory):
    """A service on a store of its own, since aliases will be moved."""
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(tiny_store, folder / "store")
    with running_service(folder / "store", folder / "log", max_rows="50", max_num="20", max_grid="5") as client:
        yield str(client.base_url).rstrip("/")
        assert client.get("/readyz").status_code == 200
        assert 'status="500"' not in client.get("/metrics").text
    assert "Traceback" not in (folder / "log").read_text()
    print(f"\n{len(sent):,} requests")


@pytest.mark.timeout(3600)
@schema.parametrize()
@settings(deadline=None, suppress_health_check=list(HealthCheck))
def test_nothing_comes_back_that_is_not_documented(case, address):
    sent.append(case.operation.label)
    # A row's length depends on the model, of which the document knows nothing: good rows may well be refused.
    case.call_and_validate(base_url=address, excluded_checks=[positive_data_acceptance], timeout=60)
