"""What each group is promised, and what it gets: adult by sex and by education, every rule, group by group.

    python benchmarks/groups.py --data FOLDER [--rows 8000] [--held 8000] [--partitions 50]

A model of some rows scores others once. In each re-partition a random half of them calibrates, by groups, and the
service's Scorer judges the other half. Beside it stands what the same rule accepts of each group without groups.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table as Listing

from service.data.detect import Detection
from service.data.domains import counted
from service.data.frames import raw_frame
from service.data.survey import surveyed
from service.density.estimate import DIRECT, Execution
from service.density.tiling import worker_pool
from service.scoring.calibration import Calibration
from service.scoring.groups import GroupPlan, Terms
from service.scoring.model import Assessment
from service.scoring.options import PLAIN, Detail, ScoreOptions
from service.scoring.scorer import Scorer
from service.scoring.scores import Scores
from service.system.cpus import cpu_quota
from service.training.recipe import TABLE_FIT, TO_PUBLISH, Recipe
from service.training.train import train_table
from service.validity.violations import ViolationReference

RULES = {
    "band 25-75": ScoreOptions("band", (25.0, 75.0)),
    "band, 0.05 on both sides": ScoreOptions("band", false_alarm=0.05),
    "band, 0.05 below": ScoreOptions("band", false_alarm=0.05, tail="low"),
    "combined, 0.02": ScoreOptions("combined", false_alarm=0.02),
    "combined, 0.05": ScoreOptions("combined", false_alarm=0.05),
}
NEEDED = 149  # calibration rows of a group, for the rule combined at a rate of 0.02


class Remembering(Scorer):
    """A Scorer that has assessed all rows before, and knows which of them it judges."""

    def remember(self, rows: np.ndarray) -> None:
        """Assess rows, shape (n, D)."""
        detail, execution = Detail(statistics=True), Execution(worker_pool(cpu_quota()))
        self.all_rows, self.chosen = rows, np.arange(0)
        self.known = super().assess(rows, detail, execution, self.band.ends)

    def assess(
        self, rows: np.ndarray, detail: Detail = PLAIN, execution: Execution = DIRECT, ends: tuple[float, ...] = ()
    ) -> Assessment:
        estimates, at = self.known.estimates, self.chosen
        assert self.known.statistics is not None
        assert np.array_equal(rows, self.all_rows[at])
        some = replace(estimates, **{name: values[at] for name, values in vars_of(estimates).items()})
        return Assessment(some, [some], statistics=self.known.statistics[at])

    def judged(self, at: np.ndarray, calibration: Calibration, options: ScoreOptions) -> Scores:
        """The scores of some rows, by number, with another calibration."""
        self.chosen, self.calibration = at, calibration
        self.band = calibration.band()
        beside = np.zeros((len(at), len(self.reader.beside)), self.all_rows.dtype)
        return self.score_read(np.concatenate([self.all_rows[at], beside], axis=1), options)


def vars_of(estimates: object) -> dict[str, np.ndarray]:
    """The arrays of a dataclass with slots."""
    return {name: getattr(estimates, name) for name in estimates.__dataclass_fields__}  # type: ignore[attr-defined]


def calibration_of(scorer: Remembering, at: np.ndarray, plan: GroupPlan | None) -> Calibration:
    """The calibration on some rows, by number, that the version would have."""
    old, codes = scorer.calibration, scorer.domains.codes(scorer.model.input, scorer.all_rows[at])
    assert old.statistics is not None
    assert scorer.known.statistics is not None
    scores, statistics = scorer.known.estimates.log_likelihood[at], scorer.known.statistics[at]
    lowest, like = np.zeros(len(at), dtype=bool), old.statistics.fit_alike(statistics)
    groups = None
    if plan is not None:
        numbers = plan.numbers(scorer.model.input, scorer.all_rows[at])
        groups = Terms(groups=plan).grouped(numbers, scores, statistics, like, codes, lowest)
    violations = ViolationReference.of(counted(codes), lowest)
    return replace(old, scores=np.sort(scores), statistics=like, violations=violations, groups=groups)


@dataclass
class Rates:
    """Of one group and rule in each re-partition: the share accepted with groups, what is said, and without groups."""

    accepted: list[float]
    said: list[float]
    without: list[float]
    rows: int = 0

    def cells(self) -> list[str]:
        """The means, and how many standard errors of the mean what is accepted is from what is said."""
        accepted, said = np.array(self.accepted), np.array(self.said)
        error = (accepted - said).std(ddof=1) / np.sqrt(len(accepted))
        apart = (accepted - said).mean() / max(float(error), 1e-9)
        means = (f"{np.mean(values):.4f}" for values in (accepted, said))
        return [f"{self.rows:,}", *means, f"{apart:+.1f}", f"{np.mean(self.without):.4f}"]


def measured(scorer: Remembering, column: str, training: np.ndarray, partitions: int) -> None:
    """Print the rates of the groups of a column, over re-partitions of the rows that are known."""
    spec, generator, count = scorer.model.input, np.random.default_rng(0), len(scorer.all_rows)
    plan = GroupPlan.of(spec, column, training, count // 2, NEEDED)
    numbers = plan.numbers(spec, scorer.all_rows)
    found: dict[tuple[str, str], Rates] = {}
    for _ in range(partitions):
        order = generator.permutation(count)
        calibrating, fresh = order[: count // 2], order[count // 2 :]
        by_groups, by_all = (calibration_of(scorer, calibrating, one) for one in (plan, None))
        for name, options in RULES.items():
            scores, without = (scorer.judged(fresh, one, options) for one in (by_groups, by_all))
            assert scores.grouping is not None
            for number in range(0 if plan.has_pool else 1, len(plan.names)):
                own = numbers[fresh] == number
                rates = found.setdefault((name, plan.names[number]), Rates([], [], []))
                rates.accepted.append(float(scores.valid[own].mean()))
                rates.said.append(scores.grouping.accepted[number].expected)
                rates.without.append(float(without.valid[own].mean()))
                rates.rows = int((numbers == number).sum())
    heads = ("rule", "group", "rows", "accepts", "says", "apart, in standard errors", "accepts without groups")
    listing = Listing(*heads, box=box.MARKDOWN, title=f"adult by {column}, {partitions} re-partitions")
    for (rule, group), rates in found.items():
        listing.add_row(rule, group, *rates.cells())
    Console(width=150).print(listing)


def main() -> None:
    """Train, score once, and judge by groups."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rows", type=int, default=8_000, help="to train on")
    parser.add_argument("--held", type=int, default=8_000, help="to calibrate on and to judge")
    parser.add_argument("--partitions", type=int, default=50)
    options = parser.parse_args()
    frame = pd.read_csv(options.data / "mixed" / "adult.csv", skipinitialspace=True, na_values="?")
    frame = frame.dropna().sample(frac=1.0, random_state=0)
    survey = surveyed(raw_frame(frame.head(options.rows)), Detection(), (), None)
    recipe = Recipe(prior="auto", fit=TABLE_FIT, least=TO_PUBLISH)
    draft = train_table(survey.table, recipe, survey.schema, reading=survey.reading).draft
    scorer = Remembering(draft.unpublished(), threads=cpu_quota())
    rows = scorer.rows(frame.iloc[options.rows : options.rows + options.held])
    training = scorer.rows(frame.head(options.rows))
    scorer.remember(rows)
    for column in ("sex", "education"):
        measured(scorer, column, training, options.partitions)


if __name__ == "__main__":
    main()
