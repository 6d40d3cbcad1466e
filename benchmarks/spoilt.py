"""Rows of people and wines that nobody should let pass: what the rule combined catches, and what the cells alone would.

    python benchmarks/spoilt.py --data FOLDER [--only adult] [--rows 8000]

Impossible: a value that no row of its column can have. Disagreeing: each value is usual, and they cannot be true together.
The models are trained here as `vouch train` trains them, without the rows that are spoilt: 200 of each kind, at 2 % false
alarms. Beside the rule stand log p(x) alone, and the most surprising cell of a row, calibrated alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table as Listing

from service.data.detect import Detection
from service.data.frames import raw_frame
from service.data.survey import surveyed
from service.scoring.options import ScoreOptions
from service.scoring.scorer import Scorer
from service.system.cpus import cpu_quota
from service.training.recipe import TABLE_FIT, TO_PUBLISH, Recipe
from service.training.train import train_table

RATE, EACH, HELD = 0.02, 200, 1_500
Spoiling = Callable[[pd.DataFrame, np.random.Generator], pd.DataFrame]


def changed(column: str, value: object) -> Spoiling:
    """One column set to a value, or to a function of its values."""

    def spoil(rows: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
        cells = rows[column].map(value) if callable(value) else value
        return rows.assign(**{column: cells})

    return spoil


def swapped(one: str, other: str) -> Spoiling:
    def spoil(rows: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
        return rows.assign(**{one: rows[other].to_numpy(), other: rows[one].to_numpy()})

    return spoil


def among(query: str, then: Spoiling) -> Spoiling:
    """A spoil of those rows alone that a query chooses."""

    def spoil(rows: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
        return then(rows.query(query), generator)

    return spoil


def contradicting_education(rows: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """The number of one's education from another row whose education is at least three steps away."""
    numbers = rows["education-num"].to_numpy()
    return rows.assign(**{"education-num": np.where(numbers > 8, numbers - 5, numbers + 5)})


ADULT: dict[str, dict[str, Spoiling]] = {
    "impossible": {
        "age 240": changed("age", 240),
        "age 5": changed("age", 5),
        "a work class never seen": changed("workclass", "Astronaut"),
        "hours-per-week x 100": changed("hours-per-week", lambda v: 100 * v),
        "sex in another case": changed("sex", str.upper),
        "a typo in the country": changed("native-country", "Untied-States"),
    },
    "disagreeing": {
        "male wives": among("sex == 'Male'", changed("relationship", "Wife")),
        "husbands never married": among("relationship == 'Husband'", changed("marital-status", "Never-married")),
        "education against its number": contradicting_education,
        "age and hours swapped": swapped("age", "hours-per-week"),
        "a capital gain below 0": among("`capital-gain` > 0", changed("capital-gain", lambda v: -v)),
    },
}
WINE: dict[str, dict[str, Spoiling]] = {
    "impossible": {
        "pH 30": changed("pH", 30.0),
        "alcohol x 100": changed("alcohol", lambda v: 100 * v),
        "a type never seen": changed("wine_type", 3),
        "a density of 0": changed("density", 0.0),
    },
    "disagreeing": {
        "the other type": changed("wine_type", lambda v: 3 - v),
        "the two sulphur dioxides swapped": swapped("free_sulfur_dioxide", "total_sulfur_dioxide"),
        "acidities swapped": swapped("fixed_acidity", "pH"),
        "chlorides below 0": changed("chlorides", lambda v: -v),
    },
}


def scorer_of(frame: pd.DataFrame) -> Scorer:
    """A model of a table, made as `vouch train` makes it."""
    survey = surveyed(raw_frame(frame), Detection(bad_cells="missing"), (), None)
    recipe = Recipe(prior="auto", fit=TABLE_FIT, least=TO_PUBLISH)
    trained = train_table(survey.table, recipe, survey.schema, reading=survey.reading)
    return Scorer(trained.draft.unpublished(), threads=cpu_quota())


def caught(scorer: Scorer, rows: pd.DataFrame) -> tuple[float, float, float]:
    """The shares of rows that are invalid: by the rule combined, by log p(x), by the most surprising cell alone."""
    scores = scorer.score(rows, ScoreOptions("combined", false_alarm=RATE))
    assert scores.rule is not None
    cells = scores.evidence[:, scores.rule.statistics.index("worst_cell")]
    shares = (~scores.valid, scores.low_p_value <= RATE, cells <= RATE)
    return tuple(float((one | scores.unreadable).mean()) for one in shares)  # type: ignore[return-value]


def lines(scorer: Scorer, held: pd.DataFrame, kinds: dict[str, dict[str, Spoiling]]) -> Iterator[tuple[str, ...]]:
    """The lines of the table."""
    generator = np.random.default_rng(0)
    yield "valid, as they are", "", f"{len(held):,}", *(f"{one:.3f}" for one in caught(scorer, held))
    for kind, spoils in kinds.items():
        found = []
        for name, spoil in spoils.items():
            rows = spoil(held, generator).head(EACH)
            found.append(caught(scorer, rows))
            yield name, kind, f"{len(rows):,}", *(f"{one:.3f}" for one in found[-1])
        yield f"mean of the {kind}", "", "", *(f"{one:.3f}" for one in np.mean(found, axis=0))


def main() -> None:
    """Train, spoil, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", choices=("adult", "wine"))
    parser.add_argument("--rows", type=int, help="of a table to train on; default: all")
    options = parser.parse_args()
    for name, file, kinds in (("adult", "adult.csv", ADULT), ("wine", "wine_quality.csv", WINE)):
        if options.only not in (None, name):
            continue
        frame = pd.read_csv(options.data / "mixed" / file, skipinitialspace=True).sample(frac=1.0, random_state=0)
        held, rest = frame.iloc[:HELD], frame.iloc[HELD:]
        scorer = scorer_of(rest.head(options.rows) if options.rows else rest)
        listing = Listing(name, "kind", "rows", "combined", "log p(x)", "the worst cell alone", box=box.MARKDOWN)
        for line in lines(scorer, held, kinds):
            listing.add_row(*line)
        Console(width=140).print(listing)


if __name__ == "__main__":
    main()
