"""The store: whole versions or none, every hash checked, and no way out of its folder."""

import json
import os
import shutil

import numpy as np
import pytest

from service.errors import CalibrationError, DamagedModelError, ModelConflictError, ModelNotFoundError, UnavailableError
from service.scoring.calibration import Calibration
from service.scoring.scorer import Scorer
from service.scoring.version import Draft, Reference
from service.store.loading import load_scorer
from service.store.store import FILES, MANIFEST, Store
from tests.models import data_of, digits


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
    import hashlib

    folder = store.root / "digits" / "1"
    card = json.loads((folder / "card.json").read_bytes())
    card["estimator"]["max_samples"] = 512
    content = json.dumps(card).encode()
    (folder / "card.json").write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest["files"]["card.json"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (folder / MANIFEST).write_text(json.dumps(manifest))
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
    with pytest.raises(DamagedModelError, match=r"aliases.json: is damaged"):
        store.resolve("digits")


def test_a_folder_that_is_not_there_is_not_taken_for_an_empty_one(tmp_path):
    with pytest.raises(UnavailableError, match="the store cannot be read: FileNotFoundError"):
        Store(tmp_path / "nowhere").names()
    store = Store(tmp_path)
    assert store.names() == []
    with pytest.raises(ModelNotFoundError, match="the store holds no model"):
        store.resolve()


def test_too_few_calibration_rows_are_refused_before_they_are_scored(digit_scorer):
    rows = digit_scorer.rows(digits()[:50])
    with pytest.raises(CalibrationError, match="need at least 99 validation rows, there are 50"):
        Calibration.fit(digit_scorer.model, rows, (1.0, 99.0))
    assert np.all(np.diff(Calibration.fit(digit_scorer.model, rows).scores) >= 0)
