"""What `vouch train` and `vouch calibrate` say at their end."""

import csv
import re
from dataclasses import replace

import pytest

from service.cli.console import duration
from service.cli.report import MOST_NAMES, report_lines
from service.density.estimator import Estimator
from service.files.tables import read_table
from service.scoring.version import Reference
from service.training.fit import FitOptions
from service.training.recipe import Recipe
from service.training.train import Trained, train_table
from tests.models import COLUMNS, made
from tests.tools import vouch

RECIPE = Recipe(
    latents=2, hidden=(16,), fit=FitOptions(epochs=3), estimator=Estimator.of("fast"), calibration_share=0.5
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """300 rows, with twelve columns that say nothing."""
    path = tmp_path_factory.mktemp("report") / "rows.csv"
    extra = [f"id{at}" for at in range(12)]
    with path.open("w", newline="") as file:
        rows = [[*row, *(f"{name}-{at}" for name in extra)] for at, row in enumerate(made(300))]
        csv.writer(file).writerows([[*COLUMNS, *extra], *rows])
    return path


@pytest.fixture(scope="module")
def trained(path) -> Trained:
    return train_table(read_table(path), RECIPE)


def said(trained: Trained, store: str = "model_store") -> str:
    return "\n".join(report_lines(Reference("people", "3"), trained, 103.0, store))


def test_the_report_says_what_was_made_of_which_rows_and_what_it_promises(trained):
    report = said(trained)
    for line in (
        "published people@3, in 2 min",
        "trained on 120 rows, 30 held back for early stopping; calibrated on 150 rows",
        r"the band from 25 to 75 % (the default) accepts 51 % of valid rows; as far as 150 rows tell, 4\d.* to 5\d.* %",
        r"the rule combined at a false-alarm rate of 0.02 accepts at least 98 % of valid rows; as far as 150 rows .*",
        "next: vouch score FILE --model people --rule combined --false-alarm 0.02",
    ):
        pattern = line.replace("(", r"\(").replace(")", r"\)")
        assert re.search(f"^{pattern}$", report, re.MULTILINE), (line, report)
    (left_out,) = [line for line in report.splitlines() if line.startswith("columns left out: ")]
    assert left_out.count("(an identifier: no value comes twice)") == MOST_NAMES
    assert left_out.endswith(" and 2 more")
    *_, last = report.splitlines()
    assert last.startswith("fit: validation bound")
    assert "reconstruction" not in report.removesuffix(last)


def test_a_store_of_its_own_is_part_of_the_next_command(trained):
    assert said(trained, "my models").count("--store 'my models'") == 1
    assert "--store" not in said(trained)


def test_a_network_that_found_nothing_is_told_in_the_user_s_words(trained):
    found, nothing = (
        said(replace(trained, report=replace(trained.report, validation=replace(kept, active_latents=active))))
        for kept, active in ((trained.report.validation, 2), (trained.report.validation, 0))
    )
    assert "no connection" not in found
    assert "no connection between the columns, so it judges each by itself" in nothing
    assert "lower --beta" in nothing
    assert "collapsed" not in nothing


def test_what_was_left_undone_and_an_interruption_are_told(trained):
    report = said(replace(trained, notes=("half of it",), report=replace(trained.report, stopped="interrupted")))
    assert "note: half of it" in report
    assert "note: the fit was interrupted" in report


def test_few_rows_get_a_rate_that_they_allow(path):
    few = train_table(read_table(path), replace(RECIPE, calibration_share=0.1))
    assert "the rule combined at a false-alarm rate of 0.1 accepts" in said(few)
    assert "vouch score FILE --model people --rule combined --false-alarm 0.1" in said(few)
    fewest = train_table(read_table(path), replace(RECIPE, calibration_share=0.02))
    assert "the rule combined is not available: it needs more rows" in said(fewest)
    assert "next: vouch score FILE --model people\n" in said(fewest)


@pytest.mark.slow
def test_folds_are_told_with_what_is_proved(path):
    report = said(train_table(read_table(path), replace(RECIPE, folds=2)))
    assert "2 networks, each trained on 135 rows, 15 held back for early stopping; calibrated on 300 rows" in report
    assert "proved: at least" in report
    assert "networks by folds do not have it" in report


@pytest.mark.slow
def test_calibrate_says_how_many_rows_count_and_why(path, tmp_path):
    store = ("--store", tmp_path / "store")
    options = ("--hidden", 8, "--latents", 2, "--epochs", 2, "--prior", "normal", "--estimator", "fast")
    done = vouch("train", path, "--name", "people", *options, *store)
    assert done.returncode == 0, done.stderr
    assert f"next: vouch score FILE --model people --rule combined --false-alarm 0.05 --store {tmp_path}" in done.stderr
    calibrated = vouch("calibrate", "people", path, *store, "--trained-rows", "allow")
    assert "calibrating on 240 rows: " in calibrated.stderr
    assert "240 of 300 rows calibrate; 30 were used to set the estimator (the pilot); 30 are kept" in calibrated.stderr


def test_durations_are_in_seconds_minutes_or_hours():
    assert [duration(seconds) for seconds in (0.2, 14.4, 103.0, 7300.0)] == ["1 s", "14 s", "2 min", "2 h 2 min"]
