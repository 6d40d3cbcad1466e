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
from service.cli.report import calibrated_lines
from service.errors import DataError

if TYPE_CHECKING:
    from service.data.cells import RawTable
    from service.files.readers import Rows
    from service.journal.database import Database
    from service.scoring.version import Draft, Published, Reference
    from service.store.store import Store


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
            "without those that people call invalid"
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
    """Rows from the journal, shape (N, D + C), as they were read, of which those at `unsure` may be invalid.

    `invalid` are the keyed hashes of rows that people call invalid, and `lines` say what was taken and what was left out.
    """

    rows: np.ndarray
    unsure: np.ndarray
    invalid: frozenset[bytes]
    lines: tuple[str, ...]


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
        recalibrated(models, published, rows.rows, cells, terms, repeats, rows.raw, data)
        return
    if repeats.group is not None:
        raise DataError("--group: rows of the journal have no such column; leave it out")
    with served.open() as database:
        found = served_rows(database, models, published, served)
        together = found.rows
        if data is not None:
            together = np.concatenate([of_file(database, published, data, key, text, found.invalid), together])
    recalibrate_on_served(models, published, together, found, terms, repeats, served)


def of_file(
    database: Database,
    published: Published,
    data: Path,
    key: str | None,
    text: TextFileOptions,
    invalid: frozenset[bytes],
) -> np.ndarray:
    """The rows of a file, shape (N, D + C), without those that people call invalid."""
    from service.journal.contents import each_row

    rows = rows_for(published.card.reader(), data, key, text.text_options()).of_model(data, published.card.input)
    kept = np.array([database.key.hash(one) not in invalid for one in each_row(rows)], dtype=bool)
    if not kept.all():
        err.print(f"{data}: {int((~kept).sum()):,} rows that people call invalid are left out")
    return rows[kept]


def recalibrated(
    models: Store,
    published: Published,
    rows: Rows,
    cells: np.ndarray,
    terms: TermsOptions,
    repeats: RepeatOptions,
    raw: RawTable | None,
    source: Path,
) -> tuple[Reference, Draft]:
    """Calibrate on rows, publish the result, and say what became of it."""
    from service.density.estimator import Estimator
    from service.training.recalibrate import recalibrate

    chosen = None if terms.estimator is None else Estimator.of(terms.estimator)
    card = published.card.calibration
    judging = terms.options().or_default(card.rule, card.false_alarm)
    found = repeated(source, cells, published.card.input, repeats, raw)
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
    reference = models.publish(published.reference.name, draft)
    total = len(rows.array) if found.groups is None else len(set(found.groups.tolist()))
    for line in calibrated_lines(reference, draft, total, found.note):
        err.print(line, highlight=False, markup=False)
    return reference, draft


# Rows that a service has scored


def served_rows(database: Database, models: Store, published: Published, options: ServedOptions) -> Served:
    """The rows of a journal to calibrate on.

    Raises:
        DataError: there are none.
    """
    from service.journal.feedback import found, kept_rows, random_share, reviews

    name, since = published.reference.name, 0 if options.window is None else before(options.window)
    said = reviews(database, name)
    labels = {one.id: one.label for one in said if one.label is not None}
    invalid = [found(database, text) for text, label in labels.items() if label == "invalid" and database.holds(text)]
    hashes = frozenset(one.content.hash_of(one.id.row) for one in invalid)
    if options.feedback:
        ids = [
            one.id for one in said if one.drawn and one.label in ("valid", "unsure") and database.holds(one.id, since)
        ]
        what = "rows drawn at random that people call valid, or are unsure of"
    else:
        ids = [text for text in random_share(database, name, since) if labels.get(text) != "invalid"]
        what = "rows kept at random when they were scored"
    width = published.card.input.features + len(published.card.reader().beside)
    kept = kept_rows(database, ids, published.card.input_digest, width)
    fingerprints, trained = models.fingerprints(published.reference), np.zeros(len(kept.rows), dtype=bool)
    if fingerprints is not None and len(kept.rows):
        trained = fingerprints.are_seen(kept.rows[:, : published.card.input.features])
    wrong = np.array([database.key.hash(one.tobytes()) in hashes for one in kept.rows], dtype=bool)
    chosen = ~trained & ~wrong
    if not chosen.any():
        why = ": none of their rows is kept, or they are of another input; VOUCH_JOURNAL_ROWS keeps them" if ids else ""
        raise DataError(f"{database.path}: no {what}, of model {name!r}{why}")
    lines = [f"{int(chosen.sum()):,} {what}"]
    for number, text in (
        (kept.lacking, "have no row in the journal, or one of another input"),
        (int(trained.sum()), "were trained on"),
        (int((wrong & ~trained).sum()), "are equal to one that people call invalid"),
    ):
        lines += [f"{number:,} more are left out: they {text}"] if number else []
    unsure = np.array([labels.get(text) == "unsure" for text in kept.ids], dtype=bool)
    return Served(kept.rows[chosen], kept.rows[chosen & unsure], hashes, tuple(lines))


def recalibrate_on_served(
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
    from service.store.store import PRODUCTION

    assert options.journal is not None
    for line in found.lines:
        err.print(line, highlight=False, markup=False)
    name, card = published.reference.name, published.card
    if PRODUCTION not in models.catalog().aliases.get(name, {}):
        serving = models.catalog().serving[name]
        models.set_alias(name, PRODUCTION, serving)
        err.print(f"{name}@{PRODUCTION} is {name}@{serving}, as it was served so far: the new version does not move it")
    cells = rows[:, : card.input.features]
    reference, draft = recalibrated(models, published, Rows(rows), cells, terms, repeats, None, options.journal)
    if len(found.unsure):
        err.print(unsure_line(draft, found.unsure, len(rows)), highlight=False, markup=False)
    if options.promote_if is not None:
        promote_if_earned(models, published, reference, draft, options)


def unsure_line(draft: Draft, unsure: np.ndarray, rows: int) -> str:
    """What the rate of false alarms is if rows of which people are unsure are invalid."""
    from service.scoring.scorer import Scorer

    scores = Scorer(draft.unpublished()).score_read(unsure)
    refused, promised = int((~scores.valid).sum()), 1.0 - scores.accepted.expected
    least = max(0.0, (promised * rows - refused) / max(1, rows - len(unsure)))
    return (
        f"{len(unsure):,} unsure rows calibrate as if they were valid, so that the rate holds if they are; {refused:,} of "
        f"them are refused: if none is valid, {100 * least:.3g} % of valid rows are refused, not {100 * promised:.3g} %"
    )


def promote_if_earned(
    models: Store, published: Published, reference: Reference, draft: Draft, options: ServedOptions
) -> None:
    """Move the alias production to a new version, if the old one drifts and the new one catches no less."""
    from service.journal.database import Entry
    from service.store.store import PRODUCTION

    old = published.reference
    with options.open() as database:
        why = why_not(database, published, draft)
        if why is not None:
            err.print(f"{old.name}@{PRODUCTION} stays at {old}: {why}", highlight=False, markup=False)
            return
        told = {
            "model": old.name,
            "alias": PRODUCTION,
            "version": reference.version,
            "before": old.version,
            "key": None,
        }
        database.append([Entry("alias", told | {"by": "vouch calibrate --promote-if drift"})])
    models.set_alias(old.name, PRODUCTION, reference.version, old.version)
    err.print(f"{old.name}@{PRODUCTION} is {reference}: {old} drifts, and the self-test catches no less")


def why_not(database: Database, published: Published, draft: Draft) -> str | None:
    """Why a new version is not to be promoted; None if it is."""
    import msgspec

    from service.scoring.selftest import mean_difference

    old = published.reference
    events = [msgspec.msgpack.decode(record.content) for record in database.records("drift")]
    if not any(one.get("model") == str(old) and "key" not in one for one in events):
        return "its drift monitor has raised no alarm"
    before_, after = published.card.selftest, draft.selftest
    if before_ is None or after is None:
        return "what the old or the new version catches is not known: there was no self-test"
    change, error = mean_difference(before_, after)
    if change < -2.0 * error:
        return f"the self-test catches {-100 * change:.1f} % less (standard error {100 * error:.1f} %)"
    return None
