"""Answers of the bundled models and public names are what they were: `scripts/freeze.py` says how they were frozen."""

import json
import sys

import numpy as np
import pytest

from service.store.store import Store
from tests.tools import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))
import freeze

ANSWERS = json.loads((freeze.FROZEN / "answers.json").read_text())
NAMES = json.loads((freeze.FROZEN / "names.json").read_text())
CASES = [
    *((name, threads) for name in freeze.ANSWERS for threads in (1, 2) if threads == 1 or "generated" not in name),
    *(pytest.param(name, 2, marks=pytest.mark.slow) for name in freeze.SLOW_ANSWERS),
]


def test_every_case_is_frozen():
    assert set(ANSWERS["sha256"]) == {*freeze.ANSWERS, *freeze.SLOW_ANSWERS}
    assert len(set(ANSWERS["sha256"].values())) == len(ANSWERS["sha256"])


@pytest.mark.parametrize(("name", "threads"), CASES)
def test_the_bundled_models_answer_as_they_did(name, threads):
    """To the bit where they were frozen; to a millionth on another kind of machine, whose products round otherwise."""
    found = {**freeze.ANSWERS, **freeze.SLOW_ANSWERS}[name](threads)
    if freeze.machine() == ANSWERS["machine"]:
        assert freeze.digest(found) == ANSWERS["sha256"][name]
    with np.load(freeze.FROZEN / "answers.npz") as arrays:
        frozen = {key.removeprefix(f"{name}/"): arrays[key] for key in arrays if key.startswith(f"{name}/")}
    assert found.keys() == frozen.keys()
    for key, array in found.items():
        np.testing.assert_allclose(array.astype(float), frozen[key], rtol=1e-6, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("kind", NAMES)
def test_public_names_are_what_they_were(kind):
    assert freeze.names()[kind] == NAMES[kind]


def test_a_new_version_has_the_card_and_the_tensors_of_the_bundled_ones(tiny_store):
    (folder,) = (tiny_store / "digits").iterdir()
    frozen = NAMES["files"]["mnist"]
    card = json.loads((folder / "card.json").read_text())
    assert (
        sorted({*card, "selftest"}) == frozen["card"]
    )  # on a busy machine there may be no time to test so small a model
    for file in ("weights", "calibration"):
        bundled = {name for name in frozen[file] if ".hidden.1." not in name}  # one hidden layer has no second
        assert freeze.tensor_names(folder / f"{file}.safetensors").keys() == bundled


def test_the_bundled_models_have_the_fingerprints_that_they_were_published_with():
    for name in freeze.MODELS:
        published = Store(freeze.STORE).load(Store(freeze.STORE).resolve(name))
        assert published.calibration.fingerprint == published.model.fingerprint
