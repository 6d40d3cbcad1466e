"""Tables as the world sends them: each is fitted, or refused in one clear line that names the file and leaves nothing."""

import csv

import numpy as np
import pytest
from typer.testing import CliRunner

from service.cli.main import app
from service.density.estimator import Estimator
from service.files.tables import read_table
from service.scoring.options import ScoreOptions
from service.store.loading import load_scorer
from service.store.store import Store
from service.training.fit import FitOptions
from service.training.recipe import Recipe
from service.training.train import train_table
from tests.models import made

QUICK = ["--epochs", "3", "--hidden", "16", "--estimator", "fast", "--prior", "normal", "--calibration-share", "0.3"]


def rows(number, seed=0):
    """Two numbers that hang together, and a category."""
    generator = np.random.default_rng(seed)
    factor = generator.normal(size=number)
    other = factor + 0.3 * generator.normal(size=number)
    return [[f"{a:.3f}", f"{b:.3f}", "low" if a < 0 else "high"] for a, b in zip(factor, other, strict=True)]


def written(path, header, table, delimiter=",", mark=""):
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(mark)
        csv.writer(file, delimiter=delimiter).writerows([header, *table])
    return path


def trained(path, store):
    """What `vouch train` says, and its exit status."""
    return CliRunner().invoke(app, ["train", str(path), "--name", "t", "--store", str(store), *QUICK])


HEADER = ["a", "b", "kind"]


def fitted_tables():
    """Tables that a model can be made of."""
    generator = np.random.default_rng(1)
    plain = rows(120)
    yield "semicolons and a byte order mark", (HEADER, plain, ";", "\ufeff")
    yield "one column", (["a"], [row[:1] for row in plain])
    yield "a number of 1e300", (HEADER, [*plain[:-1], ["1e300", "0.5", "low"]])
    yield (
        "dates and an identifier",
        (
            [*HEADER, "day", "id"],
            [[*row, f"2024-01-{1 + at % 28:02d}", f"id-{at}"] for at, row in enumerate(plain)],
        ),
    )
    yield "categories of 10,000 characters", (HEADER, [[a, b, kind * 2500] for a, b, kind in plain])
    yield "half empty", (HEADER, [["" if generator.random() < 0.5 else cell for cell in row] for row in plain])
    yield "an empty and a constant column", ([*HEADER, "none", "same"], [[*row, "", "7"] for row in plain])
    yield (
        "numbers among text",
        (HEADER, [[a, b, "3" if at % 9 == 0 else kind] for at, (a, b, kind) in enumerate(plain)]),
    )


FITTED = dict(fitted_tables())


@pytest.mark.parametrize("name", FITTED)
def test_it_is_fitted_and_scores_its_own_rows(tmp_path, name):
    header, table, *more = FITTED[name]
    path = written(tmp_path / "table.csv", header, table, *more)
    done = trained(path, tmp_path / "store")
    if name == "a number of 1e300":  # what no float32 holds is refused, where it stands
        assert done.exit_code == 2
        assert "table.csv" in done.output
        assert "column 'a': 119 numbers and 1 x '1e300', first in line 121" in done.output
        assert not (tmp_path / "store").exists()
        return
    assert done.exit_code == 0, done.output
    score = CliRunner().invoke(app, ["score", str(path), "--store", str(tmp_path / "store"), "--explain", "1"])
    assert score.exit_code == 0, score.output
    lines = list(csv.DictReader(score.stdout.splitlines()))
    assert len(lines) == len(table)
    assert np.isfinite([float(line["log_likelihood"]) for line in lines]).all()


REFUSED = {
    "one row": (HEADER, rows(1), "table.csv"),
    "no row": (HEADER, [], "table.csv"),
    "all constant": (HEADER, [["1", "2", "x"]] * 120, "no usable column (a: constant, b: constant"),
    "the same name twice": (["a", "b", "a"], rows(120), "columns 1 and 3 have the same name"),
    "a ragged line": (HEADER, [*rows(120)[:7], ["1", "2"], *rows(120)[7:]], "line 9 has 2 cells, the header has 3"),
    "no header": (["1.5", "2.5", "3"], [[*row[:2], "1"] for row in rows(120)], "line 1 reads like the other lines"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line(tmp_path, name):
    header, table, message = REFUSED[name]
    done = trained(written(tmp_path / "table.csv", header, table), tmp_path / "store")
    assert done.exit_code == 2
    said = [line for line in done.output.splitlines() if line.startswith("vouch: ")]
    assert len(said) == 1
    assert message in said[0]
    assert "table.csv" in said[0]
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_two_thousand_columns_are_fitted(tmp_path):
    generator = np.random.default_rng(0)
    factor = generator.normal(size=(150, 1))
    table = (factor + generator.normal(size=(150, 2000))).round(2).astype(str).tolist()
    path = written(tmp_path / "wide.csv", [f"c{at}" for at in range(2000)], table)
    done = trained(path, tmp_path / "store")
    assert done.exit_code == 0, done.output
    scorer = load_scorer(Store(tmp_path / "store"), "t", "cpu", threads=1)
    some = scorer.rows(scorer.model.input.array(read_table(path)))[:3]
    spoilt = some.copy()
    spoilt[:, 1234] += 100
    assert (scorer.score(spoilt, ScoreOptions(explain=1)).columns[:, 0] == 1234).all()


def test_a_file_with_other_columns_is_refused_and_more_columns_are_left_out(tmp_path):
    path = written(tmp_path / "table.csv", HEADER, rows(120))
    assert trained(path, tmp_path / "store").exit_code == 0
    arguments = ["--store", str(tmp_path / "store")]
    less = written(tmp_path / "less.csv", HEADER[:2], [row[:2] for row in rows(20)])
    done = CliRunner().invoke(app, ["score", str(less), *arguments])
    assert done.exit_code == 2
    assert "less.csv: has no column 'kind'" in done.output
    more = written(tmp_path / "more.csv", ["extra", *HEADER], [["1", *row] for row in rows(20)])
    assert CliRunner().invoke(app, ["score", str(more), *arguments]).exit_code == 0
    text = written(tmp_path / "text.csv", HEADER, [["x", *row[1:]] for row in rows(20)])
    done = CliRunner().invoke(app, ["score", str(text), *arguments, "--strict"])
    assert done.exit_code == 2
    assert "text.csv: line 2, column 'a': text, expected a number" in done.output


@pytest.mark.slow
def test_the_units_of_a_column_change_no_verdict_and_no_order_of_blame(tmp_path):
    """Cents instead of dollars, metres instead of centimetres; one column has an atom at zero beside a continuous part."""
    table = made(900)
    names = ["height", "income", "age", "gain", "city", "member", "grade"]
    factors = {"height": 0.01, "income": 100, "gain": 100}
    other = [
        [
            cell if cell == "?" or name not in factors else repr(round(float(cell) * factors[name], 6))
            for name, cell in zip(names, row, strict=True)
        ]
        for row in table
    ]
    recipe = Recipe(
        latents=3, hidden=(32,), fit=FitOptions(epochs=20, importance_samples=3), estimator=Estimator.of("fast"),
        calibration_share=0.4,
    )  # fmt: skip
    answers = []
    for label, content in (("dollars", table), ("cents", other)):
        path = written(tmp_path / f"{label}.csv", names, content)
        Store(tmp_path / label).publish("t", train_table(read_table(path), recipe).draft)
        scorer = load_scorer(Store(tmp_path / label), "t", "cpu", threads=1)
        some = scorer.rows(scorer.model.input.array(read_table(path)))[:150]
        some[::3, 0] *= 1.4
        some[1::3, 1] *= 20
        answers.append(scorer.score(some, ScoreOptions(explain=len(names))))
    dollars, cents = answers
    apart = np.abs(dollars.log_likelihood - cents.log_likelihood)  # of two estimates with draws of their own
    reliable = dollars.reliable & cents.reliable
    assert (apart <= 5 * np.hypot(dollars.std_error, cents.std_error) + 0.05)[reliable].all()
    assert apart.mean() < 0.1
    firm = dollars.certain & cents.certain
    assert firm.mean() > 0.9
    assert (dollars.sides == cents.sides)[firm].all()
    spoilt = dollars.column_p_value[:, 0] < 0.01
    assert spoilt.mean() > 0.5
    assert (dollars.columns[:, 0] == cents.columns[:, 0])[spoilt].all()
