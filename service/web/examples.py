"""Working examples for the endpoints on the OpenAPI page, made from the default model."""

from __future__ import annotations

from typing import Any

import numpy as np

from service.scoring.scorer import Scorer
from service.web.answers import JSON


def put_examples(document: dict[str, Any], scorer: Scorer) -> None:
    """Add request bodies that the default model can read to an OpenAPI document."""
    spec = scorer.model.input
    row = scorer.sample(1, seed=7, of="observation").samples[0]
    rounded = np.round(row, 4)
    instance: Any = rounded.reshape(spec.shape).tolist()
    if spec.kind == "image":
        instance = np.rint(rounded).astype(int).reshape(spec.shape).tolist()
    elif spec.columns is not None:
        (cells,) = spec.cells(rounded[None])
        instance = dict(zip(spec.columns, cells, strict=True))
    bodies: dict[str, Any] = {
        "/score": {"instances": [instance]},
        "/reconstruct": {"instances": [instance]},
        "/encode": {"instances": [instance]},
        "/decode": {"latents": [[0.0] * scorer.latents]},
        "/models/{name}/drift": {"restart": True},
        "/models/{name}/aliases": {"alias": "candidate", "version": scorer.published.reference.version},
    }
    for path, body in bodies.items():
        document["paths"][path]["post"]["requestBody"]["content"][JSON]["example"] = body
    for methods in document["paths"].values():
        for operation in methods.values():
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "path" and parameter["name"] == "name":
                    parameter["example"] = scorer.published.reference.name
                if parameter["in"] == "path" and parameter["name"] == "version":
                    parameter["example"] = scorer.published.reference.version
