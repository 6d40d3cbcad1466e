"""Clients of the Open Inference Protocol that we did not write, as they are."""

import asyncio

import numpy as np
import pytest
import tritonclient.http as triton
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from tritonclient.utils import InferenceServerException

from tests.conftest import digits

OUTPUTS = ("log_likelihood", "percentile", "p_value", "verdict")


def expected(scorer, rows):
    scores = scorer.score(rows)
    return {name: getattr(scores, name) for name in OUTPUTS}


def texts(values):
    return [value.decode() if isinstance(value, bytes) else value for value in values.tolist()]


def check(arrays, scores):
    for name in OUTPUTS[:3]:
        assert arrays[name].dtype == np.float64
        assert (arrays[name] == scores[name]).all()
    assert texts(arrays["verdict"]) == scores["verdict"]


@pytest.fixture
def triton_client(client):
    with triton.InferenceServerClient(f"127.0.0.1:{client.base_url.port}") as one:
        yield one


def triton_input(rows, kind, binary=True):
    given = triton.InferInput("rows", list(rows.shape), kind)
    given.set_data_from_numpy(rows, binary_data=binary)
    return given


def test_triton_asks_about_the_server_and_its_models(triton_client):
    assert triton_client.is_server_live()
    assert triton_client.is_server_ready()
    assert triton_client.is_model_ready("digits")
    assert triton_client.is_model_ready("digits", "1")
    assert not triton_client.is_model_ready("nothing")
    assert "binary_tensor_data" in triton_client.get_server_metadata()["extensions"]
    metadata = triton_client.get_model_metadata("digits", "1")
    assert metadata["inputs"] == [{"name": "rows", "datatype": "FP32", "shape": [-1, 64]}]
    assert [output["name"] for output in metadata["outputs"]] == list(OUTPUTS)


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [None, True, False])
@pytest.mark.parametrize("kind", ["UINT8", "FP32"])
def test_triton_scores_rows(triton_client, digit_scorer, kind, binary_in, binary_out):
    rows = digits()[:5].reshape(5, 64).astype({"UINT8": np.uint8, "FP32": np.float32}[kind])
    outputs = None
    if binary_out is not None:  # None is its default: all of them, as bytes
        outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in OUTPUTS]
    answer = triton_client.infer("digits", [triton_input(rows, kind, binary_in)], outputs=outputs, request_id="7")
    assert answer.get_response()["id"] == "7"
    assert answer.get_response()["model_version"] == "1"
    check({name: answer.as_numpy(name) for name in OUTPUTS}, expected(digit_scorer, digits()[:5]))


def test_triton_hears_what_is_wrong(triton_client):
    rows = np.zeros((2, 63), np.float32)
    with pytest.raises(InferenceServerException, match="the model reads") as refused:
        triton_client.infer("digits", [triton_input(rows, "FP32")])
    assert refused.value.status() == "422"
    with pytest.raises(InferenceServerException, match="unknown output"):
        triton_client.infer(
            "digits", [triton_input(np.zeros((1, 64), np.uint8), "UINT8")], outputs=[triton.InferRequestedOutput("x")]
        )
    with pytest.raises(InferenceServerException, match="no such model"):
        triton_client.infer("nothing", [triton_input(rows, "FP32")])


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_kserve_scores_rows(client, digit_scorer, binary_in, binary_out):
    rows = digits()[:5].reshape(5, 64).astype(np.float32)
    base = str(client.base_url).rstrip("/")

    async def ask():
        async with InferenceRESTClient(RESTConfig(protocol="v2")) as one:
            assert await one.is_server_live(base)
            assert await one.is_server_ready(base)
            assert await one.is_model_ready(base, "digits")
            given = InferInput("rows", list(rows.shape), "FP32")
            given.set_data_from_numpy(rows, binary_data=binary_in)
            request = InferRequest("digits", [given], parameters={"binary_data_output": binary_out})
            return await one.infer(base, request, model_name="digits")

    answer = asyncio.run(ask())
    check({output.name: output.as_numpy() for output in answer.outputs}, expected(digit_scorer, digits()[:5]))
