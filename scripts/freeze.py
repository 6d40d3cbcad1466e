"""Freeze what must not change by accident: the bundled models' answers to the bit, and every name that users depend on.

python scripts/freeze.py          # writes tests/frozen, which tests/test_frozen.py compares with what runs now

Freeze anew only for a deliberate change, and say in the changelog why.
"""

from __future__ import annotations

import hashlib
import json
import platform
import struct
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

from service.cli.app import app
from service.cli.main import COMMANDS
from service.files.tables import read_table
from service.scoring.options import ScoreOptions
from service.scoring.scorer import Scorer
from service.serving.metrics import Metrics
from service.settings import Settings
from service.store.loading import load_scorer
from service.store.store import Store
from service.web.app import create_app

ROOT = Path(__file__).parents[1]
STORE = ROOT / "model_store"
FROZEN = ROOT / "tests" / "frozen"
MODELS = ("adult", "mnist", "mnist-2d")
EXPLAINED = 3  # columns
Answers = dict[str, np.ndarray]


def main() -> None:
    """Write tests/frozen anew."""
    FROZEN.mkdir(exist_ok=True)
    found = {name: answer() for name, answer in {**ANSWERS, **SLOW_ANSWERS}.items()}
    document = {"machine": machine(), "sha256": {name: digest(arrays) for name, arrays in found.items()}}
    (FROZEN / "answers.json").write_text(json.dumps(document, indent=1) + "\n")
    numbers = {f"{case}/{name}": array for case, arrays in found.items() for name, array in arrays.items()}
    np.savez_compressed(FROZEN / "answers.npz", allow_pickle=False, **{k: v.astype(float) for k, v in numbers.items()})
    (FROZEN / "names.json").write_text(json.dumps(names(), indent=1) + "\n")


def machine() -> dict[str, Any]:
    """What the last bits of an answer depend on beside the code."""
    return {
        "architecture": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mkl": torch.backends.mkl.is_available(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def digest(arrays: Answers) -> str:
    """sha256 of arrays with their names, types and shapes."""
    content = hashlib.sha256()
    for name, array in arrays.items():
        content.update(f"{name} {array.dtype.str} {array.shape}".encode())
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()


# Answers of the bundled models


@cache
def scorer_of(name: str, threads: int) -> Scorer:
    """A bundled model."""
    return load_scorer(Store(STORE), name, "cpu", threads)


@cache
def rows_of(name: str) -> np.ndarray:
    """Rows for a bundled model, shape (B, D): examples, some spoilt ones, and what is nothing of the kind."""
    if name == "adult":
        rows = scorer_of(name, 1).model.input.array(read_table(ROOT / "examples" / "adult.csv"))[:40]
        spoilt = rows[:4].copy()
        spoilt[:2, 0], spoilt[2:, 12] = 240.0, -1e6  # age, hours-per-week
        return np.concatenate([rows[~np.isnan(rows).any(axis=1)], spoilt])
    digits = np.load(ROOT / "examples" / "digits.npy").reshape(10, -1).astype(np.float64)
    noise = np.random.default_rng(0).integers(0, 256, (2, digits.shape[1])).astype(np.float64)
    return np.concatenate([digits, 255.0 - digits[:2], noise, np.zeros((1, digits.shape[1]))])


def arrays_in(answer: Any) -> Answers:
    """An answer's arrays by name."""
    values = {entry.name: getattr(answer, entry.name) for entry in fields(answer) if entry.name != "evaluations"}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def scored(name: str, threads: int = 1, **options: Any) -> Answers:
    """Scores of a model's rows."""
    return arrays_in(scorer_of(name, threads).score(rows_of(name), ScoreOptions(**options)))


def scored_with_missing_cells() -> Answers:
    """Scores of a row with a missing cell, all at once: a new pattern costs as much as a thousand rows."""
    row = rows_of("adult")[:1].copy()
    row[0, 13] = np.nan
    return arrays_in(scorer_of("adult", 2).score(row, ScoreOptions("combined", explain=EXPLAINED)))


def generated(name: str) -> Answers:
    """What else a model says: reconstructions, samples, encodings and the manifold."""
    scorer, rows = scorer_of(name, 1), rows_of(name)[:3]
    answers = {
        "reconstruct": scorer.reconstruct(rows, draws=2),
        "encode": scorer.encode(rows, draws=2),
        "sample": scorer.sample(3, seed=7),
        "mean": scorer.sample(3, seed=7, of="mean"),
        "manifold": scorer.manifold(3),
    }
    return {f"{verb}.{key}": array for verb, answer in answers.items() for key, array in arrays_in(answer).items()}


SCORED: dict[str, dict[str, Any]] = {
    "plain": {},
    "other band": {"percentiles": (1.0, 99.0)},
    "explained": {"explain": EXPLAINED},
    "combined": {"rule": "combined", "false_alarm": 0.01},
}
ANSWERS: dict[str, Callable[..., Answers]] = {
    **{
        f"{name} {kind}": lambda threads=1, name=name, options=options: scored(name, threads, **options)
        for name in MODELS
        for kind, options in SCORED.items()
    },
    **{f"{name} generated": lambda threads=1, name=name: generated(name) for name in MODELS},
}
SLOW_ANSWERS: dict[str, Callable[..., Answers]] = {"adult missing cells": lambda threads=1: scored_with_missing_cells()}


# Names


def names() -> dict[str, Any]:
    """What users and files refer to by name: HTTP, command line, settings, metrics, and the files of a version."""
    return {
        "http": http_names(),
        "command line": command_names(),
        "settings": {f"VOUCH_{name.upper()}": str(field.default) for name, field in Settings.model_fields.items()},
        "metrics": metric_names(),
        "files": {name: file_names(name) for name in MODELS},
    }


def http_names() -> dict[str, Any]:
    """Paths with their parameters and statuses, and schemas with their fields."""
    document = create_app(Settings(store=str(STORE))).openapi()
    return {
        "paths": {
            f"{method.upper()} {path}": {
                "parameters": [one["name"] for one in operation.get("parameters", [])],
                "statuses": sorted(operation["responses"]),
                "reads": sorted(operation.get("requestBody", {}).get("content", {})),
                "writes": sorted(operation["responses"].get("200", {}).get("content", {})),
            }
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
        },
        "schemas": {
            name: sorted(schema.get("properties", {})) for name, schema in document["components"]["schemas"].items()
        },
    }


def command_names() -> dict[str, list[str]]:
    """Commands with their arguments and options."""
    assert COMMANDS
    group: Any = typer.main.get_command(app)
    return {
        name: sorted(text for parameter in command.params for text in (*parameter.opts, *parameter.secondary_opts))
        for name, command in sorted(group.commands.items())
    }


def metric_names() -> list[str]:
    """Metrics with their labels."""
    metrics = Metrics()
    found = []
    for metric in vars(metrics).values():
        if hasattr(metric, "describe"):
            (family,) = metric.describe()
            found.append(f"{family.type} {family.name} {sorted(getattr(metric, '_labelnames', ()))}")
    return sorted(found)


def file_names(name: str) -> dict[str, Any]:
    """The fields of a version's card, and the tensors of its files with their types and shapes."""
    (folder,) = (STORE / name).iterdir()
    card = json.loads((folder / "card.json").read_text())
    return {
        "card": sorted(card),
        **{file: tensor_names(folder / f"{file}.safetensors") for file in ("weights", "calibration")},
    }


def tensor_names(path: Path) -> dict[str, str]:
    """The tensors of a file, by its header."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    return {key: f"{one['dtype']} {one['shape']}" for key, one in sorted(header.items()) if key != "__metadata__"}


if __name__ == "__main__":
    typer.run(main)
