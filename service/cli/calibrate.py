"""`vouch calibrate`: on the rows of a file, or on rows that a service has scored and people have spoken of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import typer

from service.cli.app import app
from service.cli.console import err, fail_in_one_line, progress_bar
from service.cli.inputs import check_unseen, existing, repeated, rows_for
from service.cli.journal import JournalOptions, before
from service.cli.options import (
    FILES,
    DeviceOption,
    KeyOption,
    RepeatOptions,
    RuleOptions,
    StoreOption,
    TextFileOptions,
    TrainedRowsOption,
    takes_options,
)
from service.cli.promotion import check_is_served, keep_serving, promote_if_earned
from service.cli.report import calibrated_lines
from service.errors import DataError

if TYPE_CHECKING:
    from service.files.readers import Rows
    from service.journal.database import Database
    from service.scoring.version import Draft, Published, Reference
    from service.store.store import Store
    from service.training.repeats import Repeats


@dataclass(frozen=True)
class TermsOptions(RuleOptions):
    """Options of what a calibration is for."""

    estimator: Annotated[
        Literal["fast", "standard", "thorough"] | None,
        typer.Option(help="how log p(x) is estimated; default: unchanged"),
    ] = None
    by: Annotated[
        str | None,
        typer.Option(
            help="column whose groups are each compared with their own rows; '' for none; default: the model's"
        ),
    ] = None


@dataclass(frozen=True)
class ServedOptions(JournalOptions):
    """Options that choose rows that a service has scored."""

    feedback: Annotated[
        bool,
        typer.Option(
            "--feedback",
            help="calibrate on rows that people were asked about at random and call valid; DATA is added to them",
        ),
    ] = False
    window: Annotated[
        str | None,
        typer.Option(
            help="calibrate on rows of the last so long, such as 30d, that were kept at random when they were scored, "
            "without those that people call invalid; with --feedback: on answers about rows of that time"
        ),
    ] = None
    promote_if: Annotated[
        Literal["drift"] | None,
        typer.Option(
            help="drift: move the alias production to the new version if the old one's drift monitor has raised an alarm, "
            "and the self-test catches no less"
        ),
    ] = None

    @property
    def are_used(self) -> bool:
        return self.feedback or self.window is not None


@dataclass(frozen=True, slots=True)
class Served:
    """Rows from the journal, shape (N, D + C), as they were read, by their record ids, of which some may be invalid.

    `unsure` are those of which people are not sure, (U, D + C), `invalid` the keyed hashes of rows that people call
    invalid, and `lines` say what was taken and what was left out.
    """

    ids: list[str]
    rows: np.ndarray
    unsure: np.ndarray
    invalid: frozenset[bytes]
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Drafted:
    """A calibrated model that is not published yet, on `total` rows, and what was found of repeated ones."""

    draft: Draft
    total: int
    note: str

    def publish(self, models: Store, name: str) -> Reference:
        """Publish it, and say what became of the rows."""
        reference = models.publish(name, self.draft)
        for line in calibrated_lines(reference, self.draft, self.total, self.note):
            err.print(line, highlight=False, markup=False)
        return reference


@app.command()
@fail_in_one_line
@takes_options
def calibrate(
    model: Annotated[str, typer.Argument(help="NAME, NAME@VERSION or NAME@ALIAS")],
    terms: TermsOptions,
    text: TextFileOptions,
    repeats: RepeatOptions,
    served: ServedOptions,
    data: Annotated[Path | None, typer.Argument(help=FILES)] = None,
    store: StoreOption = "model_store",
    key: KeyOption = None,
    trained_rows: TrainedRowsOption = "refuse",
    device: DeviceOption = "auto",
) -> None:
    """Calibrate a model on other valid rows, and publish the result as a new version.

    The rows come from DATA, from what people say of rows that a service has scored (--feedback), or from rows that it
    scored lately (--window). With the latter two, the alias production stays where it is, unless --promote-if says so.
    """
    from service.scoring.scorer import torch_device

    if data is None and not served.are_used:
        raise DataError("DATA, --feedback or --window: say which rows to calibrate on")
    if served.promote_if is not None and not served.are_used:
        raise DataError("--promote-if: goes with --feedback or --window")
    models = existing(store)
    published = models.load(models.resolve(model))
    published.model.vae.to(torch_device(device))
    if not served.are_used:
        assert data is not None
        rows = rows_for(published.card.reader(), data, key, text.text_options())
        cells = rows.of_model(data, published.card.input)[:, : published.card.input.features]
        check_unseen(models, published.reference, cells, trained_rows)
        found = repeated(data, cells, published.card.input, repeats, rows.raw)
        recalibrated(models, published, rows.rows, terms, found).publish(models, published.reference.name)
        return
    if repeats.group is not None:
        raise DataError("--group: rows of the journal have no such column; leave it out")
    if served.promote_if is not None:
        check_is_served(models, published.reference)
    with served.open() as database:
        of_journal = served_rows(database, models, published, served, trained_rows)
        together = of_journal.rows
        if data is not None:
            own = rows_for(published.card.reader(), data, key, text.text_options()).of_model(data, published.card.input)
            check_unseen(models, published.reference, own[:, : published.card.input.features], trained_rows)
            together = np.concatenate([without_invalid(database, data, own, of_journal.invalid), together])
        recalibrate_on_served(database, models, published, together, of_journal, terms, repeats, served)


def without_invalid(database: Database, data: Path, rows: np.ndarray, invalid: frozenset[bytes]) -> np.ndarray:
    """The rows of a file, shape (N, D + C), without those that people call invalid."""
    from service.journal.contents import each_row

    kept = np.array([database.key.hash(one) not in invalid for one in each_row(rows)], dtype=bool)
    if not kept.all():
        err.print(f"{data}: {int((~kept).sum()):,} rows that people call invalid are left out")
    return rows[kept]


def recalibrated(models: Store, published: Published, rows: Rows, terms: TermsOptions, found: Repeats) -> Drafted:
    """Calibrate on rows, of which some may repeat."""
    from service.density.estimator import Estimator
    from service.training.recalibrate import recalibrate

    chosen = None if terms.estimator is None else Estimator.of(terms.estimator)
    card = published.card.calibration
    judging = terms.options().or_default(card.rule, card.false_alarm)
    with progress_bar() as on_progress:
        draft = recalibrate(
            published,
            rows,
            chosen,
            judging.band_percentiles,
            on_progress,
            found.groups,
            judging.default_rule,
            terms.by,
        )
    draft = replace(draft, fingerprints=models.fingerprints(published.reference))
    total = len(rows.array) if found.groups is None else len(set(found.groups.tolist()))
    return Drafted(draft, total, found.note)


# Rows that a service has scored


def served_rows(
    database: Database, models: Store, published: Published, options: ServedOptions, trained_rows: str
) -> Served:
    """The rows of a journal to calibrate on.

    Raises:
        DataError: there are none.
    """
    from service.journal.feedback import answered_line, invalid_hashes, kept_rows, random_share, reviews

    name, since = published.reference.name, 0 if options.window is None else before(options.window)
    said = [one for one in reviews(database, name) if database.holds(one.id)]
    labels, hashes = {one.id: one.label for one in said}, invalid_hashes(database, said)
    when = "" if options.window is None else f" of the last {options.window}"
    lines = []
    if options.feedback:
        drawn = [one for one in said if one.drawn and database.holds(one.id, since)]
        ids = [one.id for one in drawn if one.label in ("valid", "unsure")]
        what = f"rows{when}, drawn at random, that people call valid, or are unsure of"
        lines += answered_line(database, drawn)
        if not drawn:
            raise DataError(
                f"nobody was asked about rows{when} of model {name!r}: `vouch feedback ask {name}` draws some"
            )
    else:
        ids = [text for text in random_share(database, name, since) if labels.get(text) != "invalid"]
        what = f"rows{when}, kept at random when they were scored"
    kept = kept_rows(database, ids, published.card.input_digest, published.card.row_width)
    trained = trained_too_often(models, published, kept.rows, trained_rows)
    wrong = np.array([database.key.hash(one.tobytes()) in hashes for one in kept.rows], dtype=bool)
    chosen = ~trained & ~wrong
    if not chosen.any():
        why = ": none of their rows is kept, or they are of another input; VOUCH_JOURNAL_ROWS keeps them" if ids else ""
        raise DataError(f"{database.path}: there are no {what}, of model {name!r}{why}")
    lines.insert(0, f"{int(chosen.sum()):,} {what}")
    if not options.feedback:
        silent = sum(labels.get(text) is None for text, one in zip(kept.ids, chosen.tolist(), strict=True) if one)
        lines.append(f"{silent:,} of them nobody has spoken of: they calibrate as if they were valid")
    for number, text in (
        (kept.lacking, "have no row in the journal, or one of another input"),
        (int(trained.sum()), "were trained on"),
        (int((wrong & ~trained).sum()), "are equal to ones that people call invalid"),
    ):
        lines += [f"{number:,} more are left out: they {text}"] if number else []
    unsure = np.array([labels.get(text) == "unsure" for text in kept.ids], dtype=bool)
    taken = [text for text, one in zip(kept.ids, chosen.tolist(), strict=True) if one]
    return Served(taken, kept.rows[chosen], kept.rows[chosen & unsure], hashes, tuple(lines))


def trained_too_often(models: Store, published: Published, rows: np.ndarray, trained_rows: str) -> np.ndarray:
    """Which rows were trained on, (N,), if these are more than rows that repeat by themselves; else none is."""
    cells, fingerprints = rows[:, : published.card.input.features], models.fingerprints(published.reference)
    if fingerprints is None or trained_rows == "allow" or not len(rows) or not fingerprints.are_too_many(cells):
        return np.zeros(len(rows), dtype=bool)
    return fingerprints.are_seen(cells)


def recalibrate_on_served(
    database: Database,
    models: Store,
    published: Published,
    rows: np.ndarray,
    found: Served,
    terms: TermsOptions,
    repeats: RepeatOptions,
    options: ServedOptions,
) -> None:
    """Calibrate on rows of a service, publish the result, and promote it if that was asked for and earned."""
    from service.files.readers import Rows
    from service.journal.contents import CALIBRATE
    from service.journal.database import Entry

    for line in found.lines:
        err.print(line, highlight=False, markup=False)
    card = published.card
    same = repeated(database.path, rows[:, : card.input.features], card.input, repeats, None)
    drafted = recalibrated(models, published, Rows(rows), terms, same)
    keep_serving(database, models, published.reference.name)
    reference = drafted.publish(models, published.reference.name)
    told = {"model": str(reference), "from": str(published.reference), "records": found.ids}
    database.append([Entry(CALIBRATE, told)])
    if len(found.unsure):
        err.print(unsure_line(drafted.draft, found.unsure, len(rows)), highlight=False, markup=False)
    if options.promote_if is not None:
        promote_if_earned(database, models, published, reference, drafted.draft, found.rows)


def unsure_line(draft: Draft, unsure: np.ndarray, rows: int) -> str:
    """What the rate of false alarms is if rows of which people are unsure are invalid."""
    from service.scoring.scorer import Scorer

    scores = Scorer(draft.unpublished()).score_read(unsure)
    refused, promised = int((~scores.valid).sum()), 1.0 - scores.accepted.expected
    otherwise = max(0.0, (promised * rows - refused) / max(1, rows - len(unsure)))
    return (
        f"{len(unsure):,} unsure rows calibrate as if they were valid; {refused:,} of them are refused. If all are valid, "
        f"{100 * promised:.3g} % of valid rows are refused, and {100 * otherwise:.3g} % if none is"
    )
