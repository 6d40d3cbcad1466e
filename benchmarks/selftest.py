"""Is the self-test honest? What versions publish, beside fresh rows spoilt in the same ways, at the same thresholds.

    python benchmarks/selftest.py [--models 20]

Each model is trained as `vouch train` trains one, on a made table of its own: some columns from some hidden factors,
with categories that follow from them and counts. Fresh rows come from the same maker. A share of n rows that was published
and one of 500 fresh rows are compared by a two-sample test; of honest ones, one in 370 is beyond three standard errors.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track

from service.data.detect import Detection
from service.data.frames import raw_frame
from service.data.survey import surveyed
from service.scoring.scorer import Scorer
from service.scoring.selftest import SelfTest
from service.scoring.selftesting import selftested
from service.system.cpus import cpu_quota
from service.training.recipe import TABLE_FIT, TO_PUBLISH, Recipe
from service.training.train import train_table

TRAINED, FRESH = 1_500, 500
WORDS = ("idle", "run", "boost", "off", "late")


def made(rows: int, seed: int, model: int) -> pd.DataFrame:
    """Rows of a model's own table."""
    shape, noise = np.random.default_rng(model), np.random.default_rng([model, seed])
    numbers, factors = int(shape.integers(2, 7)), int(shape.integers(1, 4))
    loadings, offsets = shape.normal(size=(factors, numbers)), shape.normal(size=numbers)
    words = int(shape.integers(2, len(WORDS) + 1))
    hidden = noise.normal(size=(rows, factors))
    values = np.tanh(hidden) @ loadings + offsets + 0.3 * noise.normal(size=(rows, numbers))
    columns: dict[str, np.ndarray] = {f"n{at}": values[:, at] for at in range(numbers)}
    place = np.clip(np.rint((hidden[:, 0] + 1.5) / 3.0 * (words - 1)), 0, words - 1).astype(int)
    columns["state"] = np.array(WORDS)[place]
    columns["count"] = noise.poisson(np.exp(1.0 + 0.5 * hidden[:, -1]))
    return pd.DataFrame(columns)


def published(model: int) -> tuple[Scorer, SelfTest]:
    """A model, and what it says that it catches."""
    survey = surveyed(raw_frame(made(TRAINED, 0, model)), Detection(bad_cells="missing"), (), None)
    recipe = Recipe(prior="auto", fit=TABLE_FIT, least=TO_PUBLISH)
    draft = train_table(survey.table, recipe, survey.schema, reading=survey.reading).draft
    assert draft.selftest is not None
    return Scorer(draft.unpublished(), threads=cpu_quota()), draft.selftest


def differences(told: SelfTest, fresh: SelfTest) -> list[float]:
    """How far the shares of each spoil and rule are apart, in standard errors of their difference."""
    found = []
    again = {one.spoil: one for one in fresh.caught}
    for one in told.caught:
        other = again.get(one.spoil)
        if other is None:
            continue
        for mine, theirs in zip(one.shares, other.shares, strict=True):
            together = (mine * one.rows + theirs * other.rows) / (one.rows + other.rows)
            error = math.sqrt(together * (1.0 - together) * (1.0 / one.rows + 1.0 / other.rows))
            found.append((mine - theirs) / error if error else 0.0)
    return found


def main() -> None:
    """Train, test again with fresh rows, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=20)
    options = parser.parse_args()
    gaps: list[float] = []
    rows: list[int] = []
    for model in track(range(options.models), disable=not Console().is_terminal):
        scorer, told = published(model)
        fresh = scorer.read(made(FRESH, 1, model))
        gaps += differences(told, selftested(scorer, fresh, told.false_alarm))
        rows.append(max(one.rows for one in told.caught))
    far = np.abs(gaps) > 3.0
    print(
        f"{options.models} models, self-tests of {min(rows)} to {max(rows)} rows, beside {FRESH:,} fresh rows each: "
        f"{far.sum()} of {len(gaps):,} shares ({100 * far.mean():.2f} %) beyond three standard errors (target: at most "
        f"1 %); mean difference {np.mean(gaps):+.3f} standard errors, their standard deviation {np.std(gaps):.3f}"
    )


if __name__ == "__main__":
    main()
