"""`vouch evaluate`: what each rule catches, of sets of invalid rows, or by what people say of rows that were scored."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from service._version import __version__
from service.cli.app import app
from service.cli.console import drawn_rules, fail_in_one_line, write
from service.cli.inputs import check_unseen, existing, rows_for, scorer_of
from service.cli.journal import JournalOptions
from service.cli.options import DeviceOption, ModelOption, StoreOption, TrainedRowsOption, named_file, takes_options
from service.errors import DataError

if TYPE_CHECKING:
    from service.journal.contents import Label
    from service.journal.database import Database
    from service.journal.feedback import Realised, Review
    from service.scoring.evaluation import Costs, RuleOnSet
    from service.scoring.scorer import Scorer

LABELS: tuple[Label, ...] = ("valid", "invalid", "unsure")
DRAWN, OTHERS = "drawn at random", "found otherwise"  # invalid rows, by how people came to speak of them


@dataclass(frozen=True)
class CostOptions:
    """What mistakes cost, and how often rows are invalid."""

    cost_miss: Annotated[float | None, typer.Option(help="what an invalid row costs that is called valid")] = None
    cost_alarm: Annotated[float, typer.Option(help="what a valid row costs that is called invalid")] = 1.0
    prevalence: Annotated[
        float | None,
        typer.Option(
            help="share of rows that are invalid, for the costs; default: 0.01 or, with --feedback, as people say of rows "
            "drawn at random"
        ),
    ] = None

    def costs(self, usual: float = 0.01) -> Costs | None:
        """The costs, if any are given; `usual` is the prevalence if none is."""
        from service.scoring.evaluation import Costs

        if self.cost_miss is None:
            return None
        return Costs(self.cost_miss, self.cost_alarm, usual if self.prevalence is None else self.prevalence)


@dataclass(frozen=True)
class JudgedOptions(JournalOptions):
    """Options that say by which rows rules are evaluated."""

    feedback: Annotated[
        bool, typer.Option("--feedback", help="by what people say of rows that a service has scored, from the journal")
    ] = False
    valid: Annotated[Path | None, typer.Option(help="file of valid rows that the model has not seen")] = None
    invalid: Annotated[list[str] | None, typer.Option(help="NAME=FILE of invalid rows; may be repeated")] = None
    limit: Annotated[int | None, typer.Option(min=1, help="use only the first N rows of each file")] = None
    report: Annotated[
        Path | None, typer.Option(help="HTML file to write: the table, and each rule's catch and false alarms by rate")
    ] = None
    picture: Annotated[
        Path | None, typer.Option(help="PNG file to write: share caught against false alarms, one panel per set")
    ] = None

    def check(self) -> None:
        """Raise if the options do not say by which rows."""
        if self.feedback == (self.valid is not None or bool(self.invalid)):
            raise DataError("--valid and --invalid, or --feedback: say by which rows the rules are evaluated")
        if not self.feedback and (self.valid is None or not self.invalid):
            raise DataError("--valid and --invalid go together")
        if self.feedback and self.limit is not None:
            raise DataError("--limit: belongs to --valid and --invalid; leave it out")
        for path, suffix in ((self.picture, ".png"), (self.report, ".html")):
            if path is not None and path.suffix != suffix:
                raise DataError(f"{path}: expected a name that ends in {suffix}")


@app.command()
@fail_in_one_line
@takes_options
def evaluate(
    cost: CostOptions,
    judged: JudgedOptions,
    name: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="as --model")] = None,
    model: ModelOption = None,
    store: StoreOption = "model_store",
    trained_rows: TrainedRowsOption = "refuse",
    device: DeviceOption = "auto",
) -> None:
    """Compare the rules on valid and invalid rows, recommend one, and name the rate that costs least.

    With --feedback: how often valid rows were refused, by what people say of rows drawn at random, and what each rule
    would have caught of the rows that they call invalid.
    """
    judged.check()
    if name is not None and model not in (None, name):
        raise DataError("MODEL and --model: use one of them")
    scorer = scorer_of(store, model or name, device)
    if judged.feedback:
        evaluate_by_feedback(scorer, cost, judged)
        return
    sets = dict(named_file(text) for text in judged.invalid or ())
    if len(sets) < len(judged.invalid or ()):
        raise DataError("--invalid: a set is named twice")

    def read_rows(path: Path) -> np.ndarray:
        return rows_for(scorer.judging_reader(), path, None).of_model(path, scorer.model.input)[: judged.limit]

    assert judged.valid is not None
    costs = cost.costs()
    good = read_rows(judged.valid)
    check_unseen(existing(store), scorer.published.reference, good[:, : scorer.model.input.features], trained_rows)
    report(scorer, good, {key: read_rows(path) for key, path in sets.items()}, costs, judged)


def report(
    scorer: Scorer, good: np.ndarray, bad: dict[str, np.ndarray], costs: Costs | None, judged: JudgedOptions
) -> list[RuleOnSet]:
    """Print what each rule catches of sets of invalid rows, which one to use, and what costs least."""
    from service.scoring.evaluation import RATES, cheapest, cost_sentence, evaluated, rates_allowed, recommendation

    results = evaluated(scorer, good, bad)
    heads = [f"{100 * rate:g} %" for rate in RATES]
    table = Table("invalid set", "rule", "AUROC", "AUPRC", *(f"caught at {head}" for head in heads), "false alarms")
    for one in results:
        shares = [f"{100 * share:.1f}" for share in one.caught]
        alarms = ", ".join(f"{100 * share:.1f}" for share in one.alarms)
        table.add_row(one.name, one.rule, f"{one.auroc:.4f}", f"{one.auprc:.4f}", *shares, alarms)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    lines = [recommendation(results)]
    if costs is not None:
        lines.append(cost_sentence(cheapest(results, costs, rates_allowed(scorer)), costs))
    for line in lines:
        print(line)
    if judged.picture is not None:
        write(judged.picture, drawn_rules(results))
    if judged.report is not None:
        write(judged.report, as_html(scorer, results, lines).encode())
    return results


def as_html(scorer: Scorer, results: Sequence[RuleOnSet], lines: Sequence[str]) -> str:
    """An evaluation as a self-contained HTML page."""
    from service.console.report import page
    from service.scoring.evaluation import RATES, rates_allowed
    from service.scoring.promises import RATES as POINTS

    allows = rates_allowed(scorer)

    def series(p_values: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        return [
            {
                "className": style,
                "name": rule,
                "points": [
                    [rate, float((one <= rate * (1.0 + 1e-12)).mean())] for rate in POINTS if allows(rule, rate)
                ],
            }
            for (rule, one), style in zip(p_values.items(), ("first", "second", "third"), strict=False)
        ]

    sets = {
        name: series({one.rule: one.p_invalid for one in results if one.name == name})
        for name in dict.fromkeys(one.name for one in results)
    }
    alarms = series({one.rule: one.p_valid for one in results})
    rates = sorted({rate for one in alarms for rate, _ in one["points"]})
    promised = {"className": "alarms", "name": "as promised", "points": [[rate, rate] for rate in rates]}
    return page(
        f"What {scorer.published.reference} catches",
        (Path(__file__).parent / "evaluation.html").read_text(),
        model=str(scorer.published.reference),
        vouch=__version__,
        rows=f"{len(results[0].p_valid):,}",
        lines=lines,
        results=results,
        rates=RATES,
        sets=sets,
        alarms=[promised, *alarms],
    )


# By what people say


def labelled(reviews: Sequence[Review], *labels: Label) -> list[str]:
    """The record ids of rows with some labels."""
    return [one.id for one in reviews if one.label in labels]


def evaluate_by_feedback(scorer: Scorer, cost: CostOptions, judged: JudgedOptions) -> None:
    """Print how often valid rows were refused, and what each rule catches of those that people call invalid.

    Raises:
        DataError: nobody was asked, or nothing is known of valid rows.
    """
    from service.journal.feedback import answered_line, found, kept_rows, reviews

    published = scorer.published
    name, reference = published.reference.name, published.reference
    with judged.open() as database:
        known = [one for one in reviews(database, name) if database.holds(one.id)]
        drawn, others = [one for one in known if one.drawn], [one for one in known if not one.drawn]
        if not drawn:
            raise DataError(f"nobody was asked about rows of model {name!r}: `vouch feedback ask {name}` draws some")
        used = calibrated_on(database, str(reference))

        def rows_of(ids: Sequence[str]) -> np.ndarray:
            fresh = [one for one in ids if one not in used]
            return kept_rows(database, fresh, published.card.input_digest, published.card.row_width).rows

        good, unsure = rows_of(labelled(drawn, "valid")), rows_of(labelled(drawn, "unsure"))
        bad = {DRAWN: rows_of(labelled(drawn, "invalid")), OTHERS: rows_of(labelled(others, "invalid"))}
        is_refused = [found(database, one.id).is_refused for one in drawn]
        for line in (*served_lines(drawn, others, is_refused), *answered_line(database, drawn)):
            print(line)
    calibrating = sum(one in used for one in labelled(drawn, "valid", "unsure"))
    if calibrating:
        print(f"{calibrating:,} of the valid and unsure rows calibrated {reference}: it is not judged by them")
    if not len(good):
        raise DataError(
            f"no valid row is left to judge {reference} by: ask about more rows, and have them kept (VOUCH_JOURNAL_ROWS)"
        )
    for line in realised_lines(scorer, good, unsure):
        print(line)
    bad = {kind: rows for kind, rows in bad.items() if len(rows)}
    if bad:
        invalid = len(labelled(drawn, "invalid"))
        usual = max(invalid, 0.5) / max(1, invalid + len(labelled(drawn, "valid")))
        report(scorer, good, bad, cost.costs(usual), judged)


def calibrated_on(database: Database, model: str) -> set[str]:
    """The record ids of the rows that a version was calibrated on, as far as they come from the journal."""
    import msgspec

    from service.journal.contents import CALIBRATE

    told = (msgspec.msgpack.decode(record.content) for record in database.records(CALIBRATE))
    return {one for calibration in told if calibration["model"] == model for one in calibration["records"]}


def served_lines(drawn: Sequence[Review], others: Sequence[Review], is_refused: Sequence[bool]) -> list[str]:
    """How often valid rows were refused as they were served, whatever version and rule that was.

    Args:
        is_refused: which of the rows that were drawn.
    """
    from service.journal.feedback import Realised

    labels = [one.label for one in drawn]
    answered = sum(label is not None for label in labels)
    counts = ", ".join(f"{labels.count(label):,} {label}" for label in LABELS)
    return [
        f"drawn at random: {answered:,} of {len(drawn):,} rows answered: {counts}",
        "as they were served, by whatever versions and rules, false alarms were "
        f"{realised_text(Realised.of(labels, is_refused))}",
        f"not drawn: {len(labelled(others, 'invalid')):,} of {len(others):,} rows that people spoke of are invalid",
    ]


def realised_lines(scorer: Scorer, good: np.ndarray, unsure: np.ndarray) -> list[str]:
    """How often each rule of a version refuses valid rows, at some rates, beside what it promises."""
    from service.journal.feedback import Realised
    from service.scoring.evaluation import RATES, RULES
    from service.scoring.options import ScoreOptions

    can_combine = scorer.calibration.statistics is not None
    options = ScoreOptions("combined" if can_combine else "band")
    scores = scorer.score_read(np.concatenate([good, unsure]), options)
    labels: list[Label | None] = ["valid" if at < len(good) else "unsure" for at in range(len(scores))]
    lines = [f"by the rules of {scorer.published.reference}, valid rows drawn at random:"]
    if unreadable := int(scores.unreadable.sum()):
        lines.append(
            f"  {unreadable:,} of them have a cell that cannot be read, or no value: no threshold accepts them"
        )
    for rule in RULES:
        if rule == "combined" and not can_combine:
            continue
        for rate in RATES[:2]:
            refused = (RULES[rule](scores) <= rate * (1.0 + 1e-12)).tolist()
            lines.append(f"  {rule}, {100 * rate:g} % promised: {realised_text(Realised.of(labels, refused))}")
    return lines


def realised_text(realised: Realised) -> str:
    """A rate of false alarms with its interval."""
    if not realised.valid:
        return "not known: no row that was drawn at random is called valid"
    low, high = realised.interval
    either = ", whatever the unsure rows are" if realised.unsure_refused + realised.unsure_accepted else ""
    return (
        f"{100 * realised.rate:.3g} % ({realised.refused:,} of {realised.valid:,}; {100 * low:.3g} to {100 * high:.3g} % "
        f"with 95 % confidence{either})"
    )
