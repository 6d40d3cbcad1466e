"""The command line: what it makes, and one line with exit status 2 for what it cannot."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.store.store import Store
from tests.models import data_of, digits
from tests.tools import REPOSITORY, vouch


@pytest.fixture(scope="module")
def wine_csv(tmp_path_factory) -> Path:
    data = data_of("wine")
    path = tmp_path_factory.mktemp("csv") / "wine.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([data.columns, *data.array.tolist()])
    return path


def test_train_calibrate_score_and_sample_your_own_csv(wine_csv, tmp_path):
    store = tmp_path / "store"
    trained = vouch("train", wine_csv, "--name", "wine", "--store", store, "--epochs", 30)
    assert trained.returncode == 0, trained.stderr
    for word in ("published wine@1", "reconstruction", "KL", "active latents"):
        assert word in trained.stderr
    first = (store / "wine" / "1" / "card.json").read_bytes()
    card = json.loads(first)
    assert card["input"]["columns"] == list(data_of("wine").columns)
    assert card["calibration"]["rows"] == 36
    assert card["training"]["data"]["digest"].startswith("sha256:")

    calibrated = vouch(
        "calibrate",
        "wine",
        wine_csv,
        "--store",
        store,
        "--percentiles",
        "5,95",
        "--estimator",
        "thorough",
        "--trained-rows",
        "allow",
    )
    assert "published wine@2" in calibrated.stderr
    assert (store / "wine" / "1" / "card.json").read_bytes() == first
    assert Store(store).load(Store(store).resolve("wine@2")).card.estimator.setting == "thorough"

    scored = vouch("score", wine_csv, "--model", "wine@2", "--store", store)
    rows = list(csv.DictReader(scored.stdout.splitlines()))
    assert len(rows) == 178
    assert {row["verdict"] for row in rows} == {"valid", "invalid"}
    assert "178 rows" in scored.stderr
    shuffled = wine_csv.with_name("shuffled.csv")
    with wine_csv.open(newline="") as file:
        shuffled.write_text("\n".join(",".join(reversed(line)) for line in csv.reader(file)))
    assert vouch("score", shuffled, "--model", "wine@2", "--store", store).stdout == scored.stdout

    out = tmp_path / "scores.jsonl"
    assert (
        vouch("score", wine_csv, "--store", store, "--percentiles", "10,90", "--limit", 3, "--out", out).returncode == 0
    )
    assert [json.loads(line)["line"] for line in out.read_text().splitlines()] == [2, 3, 4]

    sampled = vouch("sample", "--store", store, "--num", 5, "--seed", 1)
    assert sampled.stdout == vouch("sample", "--store", store, "--num", 5, "--seed", 1).stdout
    assert sampled.stdout.splitlines()[0] == ",".join(data_of("wine").columns)

    listed = vouch("models", "--store", store, "--json")
    assert [card["version"] for card in json.loads(listed.stdout)] == ["1", "2"]


def test_images_are_sampled_as_a_picture(tiny_store, tmp_path):
    out = tmp_path / "digits.png"
    assert vouch("sample", "--store", tiny_store, "--num", 9, "--out", out).returncode == 0
    with Image.open(out) as picture:
        assert picture.size == (26, 26)
    listed = vouch("models", "--store", tiny_store)
    assert "digits@1" in listed.stdout


def test_a_damaged_model_is_listed_as_such(tiny_store, tmp_path):
    import shutil

    shutil.copytree(tiny_store, tmp_path / "store")
    (tmp_path / "store" / "grey" / "1" / "weights.safetensors").write_bytes(b"")
    listed = vouch("models", "--store", tmp_path / "store")
    assert listed.returncode == 0
    assert "DAMAGED" in listed.stdout
    assert "digits@1" in listed.stdout


def bad_calls(tmp_path, store, wine_csv):
    names = ("bad", "constant", "few", "eighteen", "sixty", "pixels")
    bad_csv, constant, few, eighteen, sixty, pixels = (tmp_path / f"{name}.csv" for name in names)
    bad_csv.write_text("a,b\n1,2\n3,oops\n")
    constant.write_text("a,b\n" + "".join(f"{i},7\n" for i in range(120)))
    few.write_text("a,b\n1,2\n2,3\n4,4\n")
    for path, rows in ((eighteen, 18), (sixty, 60)):
        path.write_text("a,b\n" + "".join(f"{i},{i % 7 - 0.5 * i}\n" for i in range(rows)))
    pixels.write_text("a,b\n1,2\n")
    np.save(tmp_path / "digits.npy", digits()[:50])
    np.save(tmp_path / "negative.npy", -digits()[:120].astype(int))
    images = tmp_path / "digits.npy"
    train = ("train", "--store", tmp_path / "new", "--name", "m")
    score = ("score", "--store", store)
    return [
        ((), "Usage|Missing"),
        (("nonsense",), "No such command"),
        (("train", wine_csv), "Missing option"),
        ((*train, tmp_path / "none.csv"), "no such file"),
        ((*train, bad_csv, "--likelihood", "gaussian"), "line 3, column 'b': text"),
        ((*train, constant, "--likelihood", "gaussian"), "column 'b' is constant"),
        ((*train, constant), "no usable column"),
        ((*train, few), "3 rows are too few: 2 are left to train on, expected at least 50"),
        ((*train, eighteen), "18 rows are too few: .* Collect at least 108 rows, or 27 and use --folds 5"),
        ((*train, sixty), "60 rows are too few: .* Use --folds 5, or collect at least 108 rows"),
        ((*train, eighteen, "--folds", "5"), "18 rows are too few: .* Collect at least 27 rows"),
        ((*train, wine_csv, "--percentiles", "0.1,99"), "need at least 999 validation rows"),
        ((*train, wine_csv, "--percentiles", "x"), "percentiles: expected two numbers"),
        ((*train, wine_csv, "--columns", "nope"), "has no column 'nope'"),
        ((*train, wine_csv, "--likelihood", "poisson"), "Invalid value for .--likelihood."),
        ((*train, wine_csv, "--likelihood", "bernoulli"), "needs --threshold"),
        ((*train, wine_csv, "--threshold", "3"), "--threshold works only with"),
        ((*train, wine_csv, "--activation", "relu"), "Invalid value for .--activation."),
        ((*train, wine_csv, "--hidden", "12,x"), "--hidden: expected"),
        ((*train, wine_csv, "--estimator", "best"), "Invalid value for .--estimator."),
        ((*train, wine_csv, "--augment", "1"), "--augment distorts images"),
        ((*train, wine_csv, "--beta", "2", "--importance-samples", "3"), "--beta cannot be combined"),
        ((*train, wine_csv, "--epochs", "0"), "0 is not in the range|Invalid value"),
        ((*train, wine_csv, "--key", "x"), "--key works only with .npz files"),
        ((*train, wine_csv, "--learning-rate", "1e30", "--epochs", "50"), "lower --learning-rate"),
        ((*train, tmp_path / "negative.npy"), "pixels range from"),
        (("train", wine_csv, "--name", "../up", "--store", tmp_path / "new"), "a name has 1 to 64"),
        ((*score, wine_csv, "--model", "nope"), "no such model"),
        ((*score, wine_csv, "--model", "wine@9"), "has no version"),
        ((*score, bad_csv, "--model", "wine"), "has no column 'alcohol'"),
        ((*score, wine_csv, "--model", "digits"), "the array has shape"),
        ((*score, images, "--out", tmp_path / "x.txt"), "ends in .csv or .jsonl"),
        ((*score, images, "--out", tmp_path / "no" / "x.csv"), "no such folder"),
        ((*score, images, "--percentiles", "0.01,50"), "need at least"),
        ((*score, images, "--device", "tpu"), "Invalid value for .--device."),
        (("score", images, "--store", tmp_path / "nowhere"), "no such folder"),
        (("sample", "--store", store, "--model", "wine", "--out", tmp_path / "x.png"), "needs a model of images"),
        (("sample", "--store", store, "--of", "x"), "Invalid value for .--of."),
        (("models", "--store", tmp_path / "nowhere"), "no such folder"),
        (("calibrate", "wine", images, "--store", store), "the array has shape"),
        (("calibrate", "wine", pixels, "--store", store), "has no column"),
        (("serve", "--port", "99999"), "Invalid value for .--port."),
    ]


def test_bad_input_is_one_line_with_exit_status_2_and_leaves_nothing(tiny_store, wine_csv, tmp_path):
    import re

    before = sorted(tiny_store.rglob("*"))
    for arguments, message in bad_calls(tmp_path, tiny_store, wine_csv):
        result = vouch(*arguments)
        assert result.returncode == 2, (arguments, result.stderr)
        *progress, last = result.stderr.strip().splitlines() or [result.stdout.strip()]
        if arguments:
            assert last.startswith("vouch: "), (arguments, result.stderr)
            # What was told before it failed: the rows, their schema in a frame, and the stages.
            told = "^(learning|timing|fitting)| rows|[\u2500-\u257f]"
            assert not [line for line in progress if not re.search(told, line)], result.stderr
        assert re.search(message, last) or not arguments, (arguments, last)
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "new").exists()
    assert sorted(tiny_store.rglob("*")) == before


@pytest.mark.slow
def test_settings_that_cannot_be_used_are_one_line(tmp_path):
    for name, value, message in (
        ("VOUCH_PORT", "http", "VOUCH_PORT: "),
        ("VOUCH_DEVICE", "tpu", "VOUCH_DEVICE: "),
        ("VOUCH_API_KEYS_FILE", str(tmp_path / "none"), "VOUCH_API_KEYS_FILE: cannot be read"),
    ):
        result = subprocess.run(
            [sys.executable, "-m", "service.cli", "serve"],
            check=False, capture_output=True, text=True, env=os.environ | {name: value}, cwd=REPOSITORY, timeout=60,
        )  # fmt: skip
        assert result.returncode == 2
        assert result.stderr.startswith(f"vouch: {message}")
        assert len(result.stderr.splitlines()) == 1


def test_a_table_of_pixels_scores_as_the_images_do(tiny_store, tmp_path, digit_scorer):
    rows = digits()[:3].reshape(3, -1)
    path = tmp_path / "pixels.csv"
    np.savetxt(path, rows, "%d", ",", header=",".join(f"p{at}" for at in range(64)), comments="")
    scored = vouch("score", path, "--model", "digits", "--store", tiny_store, "--out", tmp_path / "scores.jsonl")
    assert scored.returncode == 0, scored.stderr
    lines = map(json.loads, (tmp_path / "scores.jsonl").read_text().splitlines())
    assert [line["log_likelihood"] for line in lines] == digit_scorer.score(rows).log_likelihood.tolist()
