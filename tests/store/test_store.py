"""The store: whole versions or none, every hash checked, and no way out of its folder."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from service.errors import CalibrationError, DamagedModelError, ModelConflictError, ModelNotFoundError, UnavailableError
from service.scoring.calibration import Calibration
from service.scoring.groups import Terms
from service.scoring.scorer import Scorer
from service.scoring.version import Draft, Reference
from service.store.loading import load_scorer
from service.store.store import CARD, FILES, MANIFEST, Store
from tests.models import data_of, digits
from tests.tools import REPOSITORY


@pytest.fixture
def store(tiny_store, tmp_path):
    """A copy of the tiny store, to be damaged."""
    shutil.copytree(tiny_store, tmp_path / "store")
    return Store(tmp_path / "store")


def test_a_published_model_scores_as_before(any_scorer, tmp_path):
    scorer, rows = any_scorer
    store = Store(tmp_path)
    reference = store.publish("again", Draft(scorer.model, scorer.calibration, {}, {}))
    again = load_scorer(store, "again", "cpu").score(rows[:20])
    before = scorer.score(rows[:20])
    assert reference == Reference("again", "1")
    assert (again.log_likelihood == before.log_likelihood).all()
    assert again.band == before.band


def test_versions_count_up_and_old_ones_stay_as_they_are(store, digit_scorer):
    before = {path: path.read_bytes() for path in (store.root / "digits").rglob("*") if path.is_file()}
    second = store.publish("digits", Draft(digit_scorer.model, digit_scorer.calibration, {}, {}))
    assert second == Reference("digits", "2")
    assert store.resolve("digits") == second
    assert store.resolve("digits@1") == Reference("digits", "1")
    assert all(path.read_bytes() == content for path, content in before.items())
    assert not [path for path in (store.root / "digits").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("damage", ["missing", "truncated", "altered", "longer", "empty"])
def test_a_damaged_file_is_refused_by_name(store, name, damage):
    path = store.root / "digits" / "1" / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-7])
    elif damage == "altered":
        path.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    elif damage == "longer":
        path.write_bytes(content + b"\n}")
    else:
        path.write_bytes(b"")
    with pytest.raises(DamagedModelError, match=rf"digits@1: .*{name}|digits@1: .* {MANIFEST}"):
        store.load(Reference("digits", "1"))
    assert load_scorer(store, "wine", "cpu").score(data_of("wine").array[:2]).verdict


def test_a_half_written_version_is_none(store):
    shutil.copytree(store.root / "digits" / "1", store.root / "digits" / "2")
    (store.root / "digits" / "2" / MANIFEST).unlink()
    assert store.versions("digits") == ["1"]
    assert store.resolve("digits") == Reference("digits", "1")
    with pytest.raises(DamagedModelError, match=r"digits@2: manifest.json is missing: the version is half-written"):
        store.load(store.resolve("digits@2"))


def test_a_publish_that_fails_leaves_nothing(store, digit_scorer, monkeypatch):
    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    before = sorted(store.root.rglob("*"))
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        store.publish("digits", Draft(digit_scorer.model, digit_scorer.calibration, {}, {}))
    assert sorted(store.root.rglob("*")) == before


def test_a_version_of_another_name_is_refused(store):
    shutil.copytree(store.root / "digits" / "1", store.root / "wine" / "2")
    with pytest.raises(DamagedModelError, match=r"wine@2: card.json is that of digits@1"):
        store.load(Reference("wine", "2"))


def test_thresholds_of_another_estimator_are_refused(store, digit_scorer):
    model = digit_scorer.model
    from dataclasses import replace

    other = replace(model, estimator=replace(model.estimator, max_samples=512))
    with pytest.raises(CalibrationError, match="does not match this network"):
        digit_scorer.calibration.check_belongs_to(other)
    with pytest.raises(CalibrationError):
        store.publish("digits", Draft(other, digit_scorer.calibration, {}, {}))
    published = replace(digit_scorer.published, model=other)
    with pytest.raises(CalibrationError):
        Scorer(published)


def test_a_card_with_another_estimator_is_refused_though_its_hashes_fit(store):
    rewritten(store, CARD, lambda card: card["estimator"].update(max_samples=512))
    with pytest.raises(CalibrationError, match="digits@1: the calibration does not match this network"):
        store.load(Reference("digits", "1"))


@pytest.mark.parametrize(
    "name",
    [
        "../digits",
        "/etc",
        "..",
        ".",
        "",
        "digits/1",
        "Digits",
        "a" * 65,
        "digits\0",
        "-x",
        "digits@../1",
        "digits@",
        "x@y@z",
    ],
)
def test_names_are_no_paths(store, name):
    if name == "digits@":
        assert store.resolve(name) == Reference("digits", "1")
        return
    with pytest.raises(ModelNotFoundError):
        store.resolve(name)


def test_aliases_move_in_one_step_and_only_from_where_they_are_expected(store, digit_scorer):
    store.publish("digits", Draft(digit_scorer.model, digit_scorer.calibration, {}, {}))
    store.set_alias("digits", "production", "1")
    assert store.resolve("digits") == store.resolve("digits@production") == Reference("digits", "1")
    with pytest.raises(ModelConflictError, match="not the expected one"):
        store.set_alias("digits", "production", "2", expected="2")
    store.set_alias("digits", "production", "2", expected="1")
    assert store.resolve() == Reference("digits", "2")
    for alias in ("7", "A", "../x", ""):
        with pytest.raises(ModelConflictError):
            store.set_alias("digits", alias, "1")
    with pytest.raises(ModelNotFoundError):
        store.set_alias("digits", "production", "3")


def test_a_damaged_aliases_file_is_refused_by_name(store):
    (store.root / "aliases.json").write_text('{"default": ')
    with pytest.raises(DamagedModelError, match=r"aliases.json is damaged"):
        store.resolve("digits")


def test_a_folder_that_is_not_there_is_not_taken_for_an_empty_one(tmp_path):
    with pytest.raises(UnavailableError, match="the store cannot be read: FileNotFoundError"):
        Store(tmp_path / "nowhere").names()
    store = Store(tmp_path)
    assert store.names() == []
    with pytest.raises(ModelNotFoundError, match="the store is empty"):
        store.resolve()


def test_too_few_calibration_rows_are_refused_before_they_are_scored(digit_scorer):
    rows = digit_scorer.rows(digits()[:50])
    with pytest.raises(CalibrationError, match="need at least 99 validation rows, there are 50"):
        Calibration.fit(digit_scorer.model, rows, Terms((1.0, 99.0)))
    assert np.all(np.diff(Calibration.fit(digit_scorer.model, rows).scores) >= 0)


# Versions that are intact and wrong


def rewritten(store, name, change):
    """Change the tensors of a file, or the card, and the manifest with it, as whoever writes to the store could."""
    folder = store.root / "digits" / "1"
    content = (folder / name).read_bytes()
    if name == CARD:
        card = json.loads(content)
        change(card)
        content = json.dumps(card).encode()
    else:
        with safe_open(folder / name, "pt") as file:
            metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        change(tensors)
        content = save(tensors, metadata)
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def filled(key, value):
    def change(tensors):
        tensors[key] = torch.full_like(tensors[key], value)

    return change


def altered(key, at, value):
    def change(tensors):
        tensors[key][at] = value

    return change


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("calibration.safetensors", filled("scores", -100.0), "all validation scores are equal"),
        ("calibration.safetensors", altered("scores", -1, float("inf")), "not finite|do not match"),
        ("calibration.safetensors", lambda tensors: tensors["scores"].sub_(1.0), "the card's band is"),
        ("calibration.safetensors", filled("evidence.weights", -0.1), "weights that are not positive"),
        ("calibration.safetensors", altered("evidence.weights", 0, -1.0), "weights that are not positive"),
        ("calibration.safetensors", altered("evidence.parts", (0, 0), float("nan")), "combined rule are not finite"),
        ("calibration.safetensors", altered("evidence.combined", 0, 1e9), "combined rule are not ascending"),
        (
            "calibration.safetensors",
            filled("evidence.combined", 1.0),
            "combined statistics of validation rows are equal",
        ),
        ("calibration.safetensors", filled("evidence.usual", 0.0), "usual in columns"),
        ("calibration.safetensors", filled("columns.values", float("nan")), "distributions are not finite"),
        ("calibration.safetensors", altered("columns.values", 0, 1e9), "distributions are not ascending"),
        ("calibration.safetensors", filled("golden.log_likelihood", float("nan")), "golden rows are not finite"),
        (
            "weights.safetensors",
            filled("decoder.output.bias", float("nan")),
            "decoder.output.bias has values that are not",
        ),
        (CARD, lambda card: card["calibration"].update(band=[-1e9, 1e9]), "the card's band is"),
        (CARD, lambda card: card["architecture"].update(hidden=[30_000, 30_000]), "has shape .* the card means"),
        (CARD, lambda card: card["architecture"].update(hidden=[16] * 500), "impossible layers"),
        (CARD, lambda card: card["architecture"].update(hidden=[-1]), "cannot be built"),
        (CARD, lambda card: card["architecture"].update(latents=10**15), "has shape|cannot be built"),
        (CARD, lambda card: card.update(members=99), "has no"),
        (CARD, lambda card: card["architecture"].update(features=10**15), "has shape|cannot be built"),
    ],
)
def test_what_no_training_could_have_made_is_refused_by_name(store, name, change, problem):
    rewritten(store, name, change)
    with pytest.raises(DamagedModelError, match=f"digits@1: .*({problem})"):
        store.load(Reference("digits", "1"))


def test_a_network_of_the_card_s_size_is_not_allocated_before_it_is_known_to_be_there(store):
    rewritten(store, CARD, lambda card: card["architecture"].update(hidden=[30_000, 30_000]))
    code = (
        "import resource, sys; from service.store.store import Store; from service.scoring.version import Reference\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "try: Store(sys.argv[1]).load(Reference('digits', '1'))\n"
        "except Exception as error: print(type(error).__name__, peak() - before)"
    )
    command = [sys.executable, "-c", code, store.root]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    kind, kilobytes = found.stdout.split()
    assert kind == "DamagedModelError"
    assert int(kilobytes) < 200_000


def test_golden_rows_check_the_combined_rule_as_well(store):
    def change(tensors):  # still ascending, finite, and another distribution
        tensors["evidence.parts"] -= 50.0

    rewritten(store, "calibration.safetensors", change)
    with pytest.raises(DamagedModelError, match="golden rows have other combined statistics"):
        load_scorer(store, "digits", "cpu").warm_up()
