"""The peers: how each is installed, started, asked and understood.

    folder = Path("venvs")
    for peer in PEERS:
        peer.create(folder)
        environment = peer.environment(folder, store, "mnist", port)
        process = subprocess.Popen(peer.command(folder, port), env=environment)
        ...  # until peer.ready_url(port) answers 200
        path, headers, body = peer.body(rows, "binary")
        ...  # post it, and look at peer.log_likelihoods(content_type, headers, body) once
        process.terminate()

A request holds rows, (B, D). No peer is imported here.
"""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

Kind = Literal["json", "binary"]
Request = tuple[str, dict[str, str], bytes]  # path, headers, body
PYTHON = "python3.11"
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
JSON, NPY = "application/json", "application/x-npy"


@dataclass(frozen=True)
class Peer:
    """A server that scores rows.

    `requirements` are pip's, beside our own package; `arguments` follow a virtual environment's bin/ and contain `{port}`.
    `body` gives a request's path, headers and body; `log_likelihoods` reads an answer's content type, headers and body.
    """

    name: str
    requirements: tuple[str, ...]
    arguments: tuple[str, ...]
    ready_path: str
    body: Callable[[np.ndarray, Kind], Request]
    log_likelihoods: Callable[[str, Mapping[str, str], bytes], list[float]]

    def home(self, folder: Path) -> Path:
        """The peer's virtual environment, `folder`/`name`."""
        return (folder / self.name).resolve()

    def create(self, folder: Path) -> None:
        """Make the virtual environment, with our package in it as it lies in the tree."""
        subprocess.run([PYTHON, "-m", "venv", self.home(folder)], check=True)
        pip = [str(self.home(folder) / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *self.requirements, "--editable", str(ROOT)], check=True)

    def command(self, folder: Path, port: int) -> list[str]:
        """What starts the peer."""
        program, *rest = (argument.format(port=port) for argument in self.arguments)
        return [str(self.home(folder) / "bin" / program), *rest]

    def environment(self, folder: Path, store: Path, model: str, port: int) -> dict[str, str]:
        """The variables that it starts with: its scorer, no telemetry, and nothing written outside its folder."""
        home = self.home(folder)
        return {
            **os.environ,
            "PATH": f"{home / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(HERE.parent),
            "PEER_STORE": str(store.resolve()),
            "PEER_MODEL": model,
            "BENTOML_HOME": str(home / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "True",
            "MLSERVER_HTTP_PORT": str(port),
            "MLSERVER_GRPC_PORT": "0",  # it listens there whether or not anybody wants to; 0 takes a free one
            "MLSERVER_METRICS_DIR": str(home / "metrics"),
            "MLSERVER_ENVIRONMENTS_DIR": str(home / "environments"),
        }

    def ready_url(self, port: int) -> str:
        """Answers 200 when the scorer is loaded."""
        return f"http://127.0.0.1:{port}{self.ready_path}"


def by_type(path: str) -> Callable[[np.ndarray, Kind], Request]:
    """One path, which tells JSON and npy by the content type."""
    return by_path(path, path)


def by_path(json_path: str, npy_path: str) -> Callable[[np.ndarray, Kind], Request]:
    """A path for JSON and one for npy."""

    def body(rows: np.ndarray, kind: Kind) -> Request:
        if kind == "json":
            return json_path, {"Content-Type": JSON}, json.dumps({"instances": rows.tolist()}).encode()
        buffer = io.BytesIO()
        np.save(buffer, rows.astype(np.float32), allow_pickle=False)
        return npy_path, {"Content-Type": NPY}, buffer.getvalue()

    return body


def inference_protocol(rows: np.ndarray, kind: Kind) -> Request:
    """The Open Inference Protocol as MLServer has it: nested numbers, or each row's float32 numbers in base64.

    MLServer combines requests by adding up lists: nested rows, which the protocol allows, are B entries instead of B * D.
    """
    tensor: dict[str, Any] = {"name": "rows", "shape": list(rows.shape), "datatype": "FP32", "data": rows.tolist()}
    if kind == "binary":
        data = [base64.b64encode(row.tobytes()).decode() for row in rows.astype(np.float32)]
        parameters = {"content_type": "base64"}
        tensor = {"name": "rows", "shape": [len(rows), 1], "datatype": "BYTES", "parameters": parameters, "data": data}
    body = json.dumps({"inputs": [tensor]}).encode()
    return "/v2/models/scorer/infer", {"Content-Type": JSON}, body


def from_scores(content_type: str, headers: Mapping[str, str], body: bytes) -> list[float]:
    """Of an npy file of records, or of JSON: the records' documents, or an object that holds them as `scores`."""
    if content_type == NPY:
        records: list[float] = np.load(io.BytesIO(body), allow_pickle=False)["log_likelihood"].tolist()
        return records
    answer = json.loads(body)
    return [row["log_likelihood"] for row in (answer if isinstance(answer, list) else answer["scores"])]


def from_tensors(content_type: str, headers: Mapping[str, str], body: bytes) -> list[float]:
    """Of the Open Inference Protocol's tensors."""
    found: list[float] = next(
        output["data"] for output in json.loads(body)["outputs"] if output["name"] == "log_likelihood"
    )
    return found


CONSTRAINTS = ("--constraint", str(ROOT / "constraints.txt"))  # the versions that we are measured with
# BentoML asks for another OpenTelemetry than our constraints hold and MLServer for an older FastAPI; what carries a request
# is as in our constraints for them, too.
PINS = ("httptools==0.9.0", "msgspec==0.22.0", "numpy==2.4.6", "pydantic==2.14.3", "uvicorn==0.54.0", "uvloop==0.23.0")

NAIVE = Peer(
    name="naive",
    requirements=CONSTRAINTS,
    arguments=("python", "-m", "peers.naive_app", "{port}"),
    ready_path="/health",
    body=by_path("/score", "/score-npy"),
    log_likelihoods=from_scores,
)
LITSERVE = Peer(
    name="litserve",
    requirements=("litserve==0.2.19", *CONSTRAINTS),
    arguments=("python", "-m", "peers.litserve_app", "{port}"),
    ready_path="/health",
    body=by_type("/predict"),
    log_likelihoods=from_scores,
)
BENTOML = Peer(
    name="bentoml",
    requirements=("bentoml==1.4.40", "starlette==1.10.0", *PINS),
    arguments=("bentoml", "serve", "peers.bentoml_app:ScorerService", "--host", "127.0.0.1", "--port", "{port}"),
    ready_path="/readyz",
    body=by_path("/score", "/score_npy"),
    log_likelihoods=from_scores,
)
MLSERVER = Peer(
    name="mlserver",
    requirements=("mlserver==1.7.1", "fastapi==0.115.14", "starlette==0.46.2", "orjson==3.13.0", *PINS),
    arguments=("mlserver", "start", str(HERE / "mlserver_model")),
    ready_path="/v2/health/ready",
    body=inference_protocol,
    log_likelihoods=from_tensors,
)
PEERS = (NAIVE, LITSERVE, BENTOML, MLSERVER)
