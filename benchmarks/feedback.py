"""Five rounds of feedback with wrong labels: does the promise hold, and what does the naive way make of it?

    python benchmarks/feedback.py

A small model of a table serves rows, some of them invalid, from a world that has moved a little since training. Each round:
rows are scored, people are asked about some that are drawn at random, a tenth of their labels is wrong, and the model is
calibrated anew. Beside it, the naive way asks about the refused rows alone, and calibrates on those that are called valid.
Then fresh rows, which nobody labelled, tell how many valid ones are refused and how many invalid ones are caught.

The journal, the draw and the calibration are the program's own.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from service.cli.console import fail_in_one_line
from service.density.estimator import Estimator
from service.files.readers import Rows
from service.journal.chain import JournalKey
from service.journal.contents import ASK, FEEDBACK, SCORES, FeedbackContent, Label, RecordId, next_batch, now_ms
from service.journal.database import Database, Entry
from service.journal.feedback import Realised, found, kept_rows, picked, reviews
from service.journal.verdicts import scores_content
from service.scoring.options import ScoreOptions
from service.scoring.scorer import Scorer
from service.scoring.version import Published
from service.training.fit import FitOptions
from service.training.recalibrate import recalibrate
from service.training.recipe import Recipe
from service.training.train import train

COLUMNS = tuple(f"c{number}" for number in range(6))
NAME = "draft"
OPTIONS = {"band": ScoreOptions("band"), "combined": ScoreOptions("combined")}


@dataclass(frozen=True)
class World:
    """Where rows come from: valid ones hang together by two factors and are `moved` by so much; invalid ones do not."""

    generator: np.random.Generator
    loadings: np.ndarray
    moved: float = 0.0

    def valid(self, number: int) -> np.ndarray:
        """Valid rows, shape (number, 6)."""
        factors = self.generator.standard_normal((number, 2))
        return factors @ self.loadings + 0.4 * self.generator.standard_normal((number, 6)) + self.moved

    def invalid(self, number: int) -> np.ndarray:
        """Rows whose columns come from different valid ones, and are spread wider."""
        rows = 1.5 * self.valid(number)
        return np.stack([self.generator.permutation(column) for column in rows.T], axis=1)

    def mixed(self, number: int, share: float) -> tuple[np.ndarray, np.ndarray]:
        """Rows in any order, and which of them are valid."""
        is_valid = self.generator.random(number) >= share
        rows = np.where(is_valid[:, None], self.valid(number), self.invalid(number))
        return rows, is_valid


@dataclass
class Side:
    """One way of calibrating: its version now, its journal, and the rows that it may calibrate on."""

    published: Published
    database: Database
    truth: dict[str, bool]

    @property
    def scorer(self) -> Scorer:
        return Scorer(self.published)

    def serve(self, rows: np.ndarray, is_valid: np.ndarray, options: ScoreOptions) -> None:
        """Score rows, and record the verdicts and the rows."""
        scorer, batch = self.scorer, next_batch(0)
        read = scorer.read(rows)
        scores = scorer.score_read(read, options)
        model = f"{NAME}@1", "", self.published.card.input_digest
        content, cells = scores_content(
            self.database.key, None, model, scores, read, np.ones(len(read), dtype=bool), 1.0
        )
        each = [(batch, at, one) for at, one in cells]
        self.database.append([Entry(SCORES, content, batch, cells=each)])
        self.truth |= {str(RecordId(batch, at)): bool(one) for at, one in enumerate(is_valid)}

    def answered(self, ids: list[str], wrong: float, generator: np.random.Generator) -> None:
        """What people say of rows, of which a share is wrong."""
        entries = []
        for one in ids:
            is_right = generator.random() >= wrong
            label: Label = "valid" if self.truth[one] == is_right else "invalid"
            entries.append(Entry(FEEDBACK, FeedbackContent("people", one, NAME, label)))
        self.database.append(entries)

    def calibrated(self, ids: list[str], options: ScoreOptions) -> None:
        """Calibrate on rows that people call valid."""
        width = self.published.model.input.features
        rows = kept_rows(self.database, ids, self.published.card.input_digest, width).rows
        draft = recalibrate(self.published, Rows(rows, COLUMNS), rule=options.default_rule)
        self.published = replace(draft, fingerprints=None).unpublished()


@fail_in_one_line
def main(
    rule: Annotated[str, typer.Option(help="band or combined")] = "combined",
    false_alarm: Annotated[float, typer.Option(help="the promised rate")] = 0.02,
    rounds: Annotated[int, typer.Option()] = 5,
    number: Annotated[int, typer.Option(help="rows that are scored in a round")] = 4_000,
    drawn: Annotated[int, typer.Option(help="rows that people are asked about in a round")] = 600,
    invalid: Annotated[float, typer.Option(help="share of invalid rows")] = 0.05,
    wrong: Annotated[float, typer.Option(help="share of wrong labels")] = 0.1,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Simulate, and print a table."""
    torch.set_num_threads(2)
    options = replace(OPTIONS[rule], false_alarm=false_alarm)
    generator = np.random.default_rng(seed)
    before = World(generator, generator.standard_normal((2, 6)))
    recipe = Recipe(
        latents=2, hidden=(32,), fit=FitOptions(epochs=30, seed=seed), estimator=Estimator.of("fast"),
        rule=options.default_rule[0], false_alarm=options.default_rule[1],
    )  # fmt: skip
    published = train(Rows(before.valid(6_000), COLUMNS), recipe).draft.unpublished()
    world = replace(before, moved=0.3)
    key = JournalKey.of(b"x" * 32)
    print(
        f"rule {rule}, {100 * false_alarm:g} % promised; {100 * invalid:g} % of rows and {100 * wrong:g} % of labels wrong"
    )
    heads = (
        "refused of valid, as labelled",
        "standard errors from the promise",
        "of valid, in truth",
        "caught of invalid",
    )
    print(f"| round | calibrated on | rows | {' | '.join(heads)} |")
    print("|--:|---|" + "--:|" * 5)
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            name: Side(published, Database(Path(folder) / name.replace(" ", "-"), key, False, may_create=True), {})
            for name in ("drawn at random", "refused alone")
        }
        for turn in range(rounds + 1):
            for name, side in sides.items():
                labelled = one_round(side, name, turn, world, options, (number, drawn, invalid, wrong))
                print(f"| {turn} | {name if turn else 'training data'} | {labelled} |", flush=True)


def one_round(
    side: Side,
    name: str,
    turn: int,
    world: World,
    options: ScoreOptions,
    sizes: tuple[int, int, float, float],
) -> str:
    """Calibrate on what is known, unless it is the first round; then serve, ask, and measure."""
    number, drawn, invalid, wrong = sizes
    said = reviews(side.database, NAME)
    of_drawn = name == "drawn at random"
    usable = [one.id for one in said if one.label == "valid" and one.drawn == of_drawn]
    if turn:
        side.calibrated(usable, options)
    rows, is_valid = world.mixed(number, invalid)
    since = now_ms()
    side.serve(rows, is_valid, options)
    if of_drawn:
        asked = picked(side.database, NAME, drawn, 0, world.generator, since).drawn
        side.database.append([Entry(ASK, {"model": NAME, "drawn": asked, "others": [], "among": number})])
    else:
        latest = list(side.truth)[-number:]
        asked = [one for one in latest if found(side.database, one).is_refused]
    side.answered(asked, wrong, world.generator)
    fresh = [one for one in reviews(side.database, NAME) if one.id in set(asked)]
    as_labelled = Realised.of([one.label for one in fresh], [found(side.database, one.id).is_refused for one in fresh])
    scorer = side.scorer
    valid = (~scorer.score_read(scorer.read(world.valid(20_000)), options).valid).mean()
    caught = (~scorer.score_read(scorer.read(world.invalid(4_000)), options).valid).mean()
    rate, statistics = options.false_alarm or 0.0, scorer.calibration.statistics
    calibrating = len(scorer.calibration.scores) if options.rule == "band" or statistics is None else statistics.rows
    error = float(np.sqrt(rate * (1.0 - rate) * (1.0 / max(1, as_labelled.valid) + 1.0 / calibrating)))
    errors = (as_labelled.rate - rate) / error
    seen = f"{100 * as_labelled.rate:.2f} % | {errors:+.1f}" if of_drawn else "not known | "
    used = f"{len(usable) if turn else len(side.published.calibration.scores):,}"
    return f"{used} | {seen} | {100 * float(valid):.2f} % | {100 * float(caught):.1f} %"


if __name__ == "__main__":
    typer.run(main)
