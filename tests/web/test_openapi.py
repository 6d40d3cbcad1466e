"""The OpenAPI document, as programs and people use it."""

import hashlib
import json

import msgspec
import pytest
from anyio.from_thread import start_blocking_portal

from service.settings import Settings
from service.web import schemas
from service.web.app import create_app
from service.web.documentation import TAGS
from service.web.openapi import KEYS, operations, references
from tests.tools import check_problem, eventually

SCREEN = 1500  # characters
RAW = "application/problem+json"


@pytest.fixture(scope="module")
def document(in_process):
    return in_process.get("/openapi.json").json()


def described_parts(schemas_of):
    """Each property of each schema, by its place."""
    for name, schema in schemas_of.items():
        for field, part in schema.get("properties", {}).items():
            yield f"{name}.{field}", part


def test_it_is_of_version_3_1_and_every_operation_has_a_name_a_group_and_a_text(document):
    assert document["openapi"].startswith("3.1")
    names = [operation["operationId"] for _, operation in operations(document)]
    assert len(set(names)) == len(names)
    assert {"score", "reconstruct", "sample", "encode", "decode", "manifold", "list_models", "get_model"} <= set(names)
    assert [tag["name"] for tag in document["tags"]] == list(TAGS)
    for path, operation in operations(document):
        assert operation["tags"][0] in TAGS, path
        assert operation["description"], path


def test_json_is_the_one_success_of_what_answers_with_json(document):
    for path, operation in operations(document):
        kinds = set(operation["responses"]["200"]["content"])
        if operation["operationId"].endswith(("_file", "_lines")):
            assert "application/json" not in kinds, path
        elif path != "/metrics":
            assert kinds == {"application/json"}, path
            assert "$ref" in operation["responses"]["200"]["content"]["application/json"]["schema"], path


def test_every_field_parameter_and_header_is_described(document):
    components = document["components"]
    silent = [name for name, part in described_parts(components["schemas"]) if not part.get("description")]
    silent += [
        f"{path} {one['name']}"
        for path, operation in operations(document)
        for one in operation.get("parameters", [])
        if not one.get("description")
    ]
    silent += [name for name, header in components["headers"].items() if not header["description"]]
    assert not silent


def test_every_schema_is_used_and_every_one_that_is_used_is_there(document):
    used = set(references(document))
    components = document["components"]
    assert used == {*components["schemas"], *components["headers"], *components["responses"]}


def test_examples_fit_a_screen_and_are_what_the_schemas_say(document):
    for path, operation in operations(document):
        for kind, body in operation.get("requestBody", {}).get("content", {}).items():
            if kind == "application/json" and "/infer" not in path:
                assert len(json.dumps(body["example"])) < SCREEN, path
    for name, answer in document["components"]["responses"].items():
        problem = schemas.Problem.model_validate(answer["content"][RAW]["example"])
        assert name == f"Problem{problem.status}"


def test_the_deployment_s_limits_are_in_it():
    settings = Settings(max_rows=7, max_num=8, max_draws=9, max_grid=10)
    document = create_app(settings).openapi()
    bodies = document["components"]["schemas"]
    assert bodies["Instances"]["properties"]["instances"]["maxItems"] == 7
    assert bodies["Latents"]["properties"]["latents"]["maxItems"] == 7
    most = {"num": 8, "draws": 9, "size": 10}
    found = {
        (one["name"], one["schema"]["maximum"])
        for _, operation in operations(document)
        for one in operation.get("parameters", [])
        if one["name"] in most
    }
    assert found == set(most.items())
    assert "maximum" not in str(document["paths"]["/score"]["post"]["parameters"][0])


def test_errors_say_when_to_try_again_and_samples_their_seed(document):
    responses = document["components"]["responses"]
    for status in ("429", "503"):
        assert "Retry-After" in responses[f"Problem{status}"]["headers"]
    assert "Retry-After" not in responses["Problem422"]["headers"]
    sample = document["paths"]["/sample"]["get"]["responses"]["200"]["headers"]
    assert {"X-Seed", "ETag", "X-Request-Id", "Server-Timing"} == set(sample)


def test_where_keys_are_set_it_says_how_they_are_sent(tmp_path, document):
    assert "security" not in document
    (tmp_path / "keys").write_text(f"{hashlib.sha256(b'reader').hexdigest()} score\n")
    with_keys = create_app(Settings(api_keys_file=tmp_path / "keys", open_paths=("/docs", "/metrics"))).openapi()
    assert with_keys["components"]["securitySchemes"] == KEYS
    assert with_keys["security"] == [{"bearer": []}, {"header": []}]
    for at, operation in operations(with_keys):
        assert operation.get("security") == (
            [] if at in ("/livez", "/readyz", "/healthz", "/health", "/metrics") else None
        )
    assert "scope `admin`" in with_keys["paths"]["/models/{name}/aliases"]["post"]["description"]


def test_real_answers_are_what_it_says(in_process, document):
    msgspec.json.decode(in_process.get("/version").content)
    schemas.VersionInfo.model_validate_json(in_process.get("/version").content)
    for path in ("/health", "/healthz"):
        schemas.StatusAnswer.model_validate_json(in_process.get(path).content)
    row = {"instances": [[0] * 64]}
    predicted = in_process.post("/v1/models/digits:predict", json=row)
    schemas.PredictionsAnswer.model_validate_json(predicted.content)
    assert predicted.json()["predictions"] == in_process.post("/score", json=row).json()["scores"]
    assert predicted.headers["x-model"] == "digits@1"
    for path in ("/score/files", "/reconstruct/files", "/encode/files"):
        assert in_process.post(path, json=row).json() == in_process.post(path.removesuffix("/files"), json=row).json()


@pytest.mark.parametrize(
    ("path", "accept"),
    [("/sample.npy?seed=1", "application/x-npy"), ("/sample.png?seed=1", "image/png"), ("/sample.json?seed=1", "*/*"),
     ("/manifold.npy?size=2", "application/x-npy"), ("/sample.csv?seed=1&model=wine", "text/csv")],
)  # fmt: skip
def test_an_ending_says_what_accept_would(in_process, path, accept):
    before, _, after = path.partition("?")
    by_accept = in_process.get(f"{before.rpartition('.')[0]}?{after}", headers={"accept": accept})
    by_ending = in_process.get(path, headers={"accept": "application/nothing"})
    assert by_ending.status_code == 200
    assert (by_ending.content, by_ending.headers["content-type"]) == (
        by_accept.content,
        by_accept.headers["content-type"],
    )
    assert by_ending.headers.get("x-model", "").startswith(("", "digits@", "wine@"))


def test_examples_come_as_soon_as_there_is_a_model(tiny_store):
    app = create_app(Settings(store=str(tiny_store), store_cache=None, store_poll_s=0, threads=1))
    body = app.openapi()["paths"]["/score"]["post"]["requestBody"]["content"]["application/json"]
    assert "example" not in body  # it has not begun to load
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(app.router.lifespan_context(app)):
        eventually(app.state.service.engine.is_ready, 60)
        assert "example" in app.openapi()["paths"]["/score"]["post"]["requestBody"]["content"]["application/json"]


def test_head_is_what_get_would_be(in_process):
    for path in ("/sample.png?seed=1", "/sample.npy?seed=1", "/models", "/openapi.json", "/sample.exe", "/nowhere"):
        get, head = in_process.get(path), in_process.request("HEAD", path)
        assert (head.status_code, head.content) == (get.status_code, b""), path
        for name in ("content-type", "etag"):
            assert head.headers.get(name) == get.headers.get(name), (path, name)


def test_the_path_of_lines_reads_lines_and_nothing_else(in_process):
    lines = f"{json.dumps([0] * 64)}\n" * 2
    for headers in ({}, {"content-type": "application/octet-stream"}, {"content-type": "application/x-ndjson"}):
        answer = in_process.post("/score.ndjson", content=lines, headers=headers | {"accept": "application/json"})
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
        assert len(answer.text.splitlines()) == 2
    for kind in ("application/json", "text/plain"):
        refused = in_process.post("/score.ndjson", content=lines, headers={"content-type": kind})
        assert "content-type: application/x-ndjson" in check_problem(refused, 415).detail
    for path in ("/encode", "/reconstruct", "/v1/models/digits:predict"):
        refused = in_process.post(path, content=lines, headers={"content-type": "application/x-ndjson"})
        assert "the content type is application/x-ndjson" in check_problem(refused, 415).detail


def test_a_coding_is_offered_where_the_coding_was_refused(in_process):
    row = {"instances": [[0] * 64]}
    assert (
        in_process.post("/score", json=row, headers={"content-encoding": "br"}).headers["accept-encoding"]
        == "gzip, zstd"
    )
    assert (
        "accept-encoding" not in in_process.post("/score", content="x", headers={"content-type": "text/plain"}).headers
    )


@pytest.mark.parametrize(
    "kind",
    ["text/csv; charset*" + 5000 * "9" + "=x", 'text/csv; charset="' + 9000 * ";", "text/csv; charset=" + "x" * 9000],
)
def test_a_content_type_of_any_shape_costs_little(in_process, kind):
    answer = in_process.post("/score?model=wine", content="a,b\n1,2\n", headers={"content-type": kind})
    assert answer.status_code in (415, 422)


def test_parts_of_files_are_not_compressed(in_process):
    path = "/docs-assets/swagger-ui.css"
    part = in_process.get(path, headers={"range": "bytes=0-19999", "accept-encoding": "gzip"})
    assert (part.status_code, part.headers.get("content-encoding"), len(part.content)) == (206, None, 20_000)
