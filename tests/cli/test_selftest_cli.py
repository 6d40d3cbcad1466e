"""`vouch selftest`, the costs of `vouch evaluate`, and the rule that a version is published with, from the command line."""

import csv
import json
import re
import shutil
from html import unescape

import numpy as np
import pytest

from tests.models import data_of, digits
from tests.tools import vouch

WAYS = """
import numpy as np
from service.scoring.spoils import Spoil
SPOILS = [Spoil("nothing left", lambda rows, chosen, generator: np.zeros_like(rows))]
"""


@pytest.fixture(scope="module")
def own_store(tiny_store, tmp_path_factory):
    """A copy of the store that may be published to."""
    return shutil.copytree(tiny_store, tmp_path_factory.mktemp("own") / "store")


@pytest.fixture
def digits_npy(tmp_path):
    np.save(tmp_path / "digits.npy", digits()[-120:])
    return tmp_path / "digits.npy"


def test_a_version_says_what_it_catches_and_is_tested_again(own_store, digits_npy, tmp_path):
    published = vouch("selftest", "digits", "--store", own_store)
    assert published.returncode == 0, published.stderr
    assert published.stdout.splitlines()[2].startswith("valid, as they are")
    assert "upside down" in published.stdout
    ways = tmp_path / "ways.py"
    ways.write_text(WAYS)
    options = ("--store", own_store, "--trained-rows", "allow", "--limit", 20, "--false-alarm", 0.1)
    again = vouch("selftest", "digits", digits_npy, *options, "--spoil", ways)
    assert again.returncode == 0, again.stderr
    assert "false-alarm rate of 10 %" in again.stdout
    line = next(line for line in again.stdout.splitlines() if line.startswith("nothing left"))
    assert line.split()[2] == "20"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("SPOILS = 3", "a list of service.scoring.spoils.Spoil"),
        ("import nowhere", "ModuleNotFoundError"),
        (None, "no such"),
    ],
)
def test_ways_that_cannot_be_used_are_one_line(own_store, digits_npy, tmp_path, content, why):
    ways = tmp_path / "ways.py"
    if content is not None:
        ways.write_text(content)
    bad = vouch("selftest", "digits", digits_npy, "--store", own_store, "--trained-rows", "allow", "--spoil", ways)
    assert bad.returncode == 2
    assert why in bad.stderr.splitlines()[-1]
    assert "Traceback" not in bad.stderr


def test_the_cheapest_rate_is_named(own_store, digits_npy, tmp_path):
    noise = tmp_path / "noise.npy"
    np.save(noise, np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8))
    options = ("--model", "digits", "--store", own_store, "--trained-rows", "allow", "--valid", digits_npy)
    told = vouch("evaluate", *options, "--invalid", f"noise={noise}", "--cost-miss", 50)
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines()[-1].startswith("Cheapest: `?")
    wrong = vouch("evaluate", *options, "--invalid", f"noise={noise}", "--cost-miss", 50, "--prevalence", 2)
    assert wrong.returncode == 2
    assert "prevalence" in wrong.stderr


def test_an_evaluation_is_written_as_a_page_of_its_own(own_store, digits_npy, tmp_path):
    sets = {
        "noise": np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8),
        "<b>black</b>": np.zeros((9, 8, 8)),
    }
    files = []
    for number, (name, rows) in enumerate(sets.items()):
        np.save(tmp_path / f"{number}.npy", rows)
        files += ["--invalid", f"{name}={tmp_path / f'{number}.npy'}"]
    options = ("--model", "digits", "--store", own_store, "--trained-rows", "allow", "--valid", digits_npy)
    told = vouch("evaluate", *options, *files, "--report", tmp_path / "out.html")
    assert told.returncode == 0, told.stderr
    page = (tmp_path / "out.html").read_text()
    assert "digits@1" in page
    assert "&lt;b&gt;black&lt;/b&gt;" in page
    assert "<b>black" not in page
    assert told.stdout.splitlines()[-1].replace("`", "") in unescape(page).replace("`", "")
    wanted = json.loads(re.search(r'id="charts">(.*?)</script>', page)[1])
    assert [one["kind"] for one in wanted] == ["RateChart"] * 3
    assert all(f'id="{one["at"]}"' in page for one in wanted)
    caught = dict(wanted[0]["props"]["series"][-1]["points"])
    assert caught[0.5] == 1.0
    assert not re.search(r"https?://(?!www\.w3\.org)", page)
    wrong = vouch("evaluate", *options, *files, "--report", tmp_path / "out.pdf")
    assert wrong.returncode == 2
    assert "ends in .html" in wrong.stderr


def test_a_version_is_published_with_its_rule(tmp_path):
    data = data_of("wine")
    path, store = tmp_path / "wine.csv", tmp_path / "store"
    rows = np.concatenate([data.array, data.array * (1 + 1e-3)])
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([data.columns, *rows.tolist()])
    make = ("train", path, "--name", "wine", "--store", store, "--epochs", 10, "--repeats", "natural")
    late = vouch(*make, "--rule", "combined", "--false-alarm", 0.001)
    assert late.returncode == 2
    assert "the rule combined at a rate of 0.001 needs at least 3,000" in late.stderr
    assert not (store / "wine").exists()
    made = vouch(*make, "--rule", "combined", "--false-alarm", 0.1)
    assert made.returncode == 0, made.stderr
    assert "the rule combined at a false-alarm rate of 0.1 (the default)" in made.stderr
    card = json.loads((store / "wine" / "1" / "card.json").read_text())
    assert (card["calibration"]["rule"], card["calibration"]["false_alarm"]) == ("combined", 0.1)
    scored = list(csv.DictReader(vouch("score", path, "--store", store, "--limit", 9).stdout.splitlines()))
    assert all(row["combined_p_value"] for row in scored)
    by_band = vouch("score", path, "--store", store, "--limit", 9, "--rule", "band").stdout
    assert "combined_p_value" not in by_band
    back = vouch("calibrate", "wine", path, "--store", store, "--trained-rows", "allow", "--rule", "band")
    assert back.returncode == 0, back.stderr
    card = json.loads((store / "wine" / "2" / "card.json").read_text())
    assert (card["calibration"]["rule"], card["calibration"]["false_alarm"]) == ("band", None)
    both = vouch(*make, "--rule", "combined", "--percentiles", "1,99")
    assert both.returncode == 2
    assert "belong to the rule band" in both.stderr
