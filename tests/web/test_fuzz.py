"""Requests of every kind, made from the OpenAPI document by Schemathesis: nothing that is not documented comes back.

`make fuzz` sends thousands of them, `make test` some hundred.
"""

import os
import shutil
import tomllib

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from service.settings import Settings
from service.web.app import create_app
from tests.tools import REPOSITORY, running_service

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "4"))
sent: list[str] = []  # the operation of each request


CONFIG = schemathesis.Config.from_dict(
    tomllib.loads((REPOSITORY / "schemathesis.toml").read_text())
    | {"seed": 1, "generation": {"deterministic": True, "max-examples": EXAMPLES, "database": "none"}}
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
    answer = case.call_and_validate(base_url=address, timeout=60)
    if case.meta.generation.mode.is_positive and case.media_type == "application/json":
        assert answer.status_code not in (400, 415), answer.text  # which the configuration allows to damaged files
