"""`vouch feedback ask`, `answer` and `list`: whom to ask about which rows, and what they say."""

from __future__ import annotations

import csv
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from service.cli.app import app
from service.cli.console import err, fail_in_one_line
from service.cli.journal import JournalOptions, before
from service.cli.options import StoreOption, takes_options
from service.errors import DataError, NoRecordError

if TYPE_CHECKING:
    from service.journal.database import Database
    from service.journal.feedback import Found, Review
    from service.scoring.version import Card

feedback = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What people say of verdicts, by the journal.")
app.add_typer(feedback, name="feedback")
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="the model's name")]
FIELDS = ("record", "model", "time", "verdict", "reason", "p_value", "drawn", "label")


@feedback.command()
@fail_in_one_line
@takes_options
def ask(
    name: NameArgument,
    where: JournalOptions,
    random: Annotated[int, typer.Option(min=0, help="rows drawn at random among all that were scored")] = 50,
    worth: Annotated[int, typer.Option(min=0, help="rows whose verdict is uncertain, or close; they tell no rate")] = 0,
    since: Annotated[str | None, typer.Option(help="only of the last so long, such as 7d")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="seed of the draw; default: another each time")] = None,
) -> None:
    """Choose rows that people shall be asked about, and print their record ids.

    `vouch feedback list` and GET /feedback show them. A row that was drawn is not drawn again.
    """
    import numpy as np

    from service.journal.contents import ASK
    from service.journal.database import Entry
    from service.journal.feedback import picked

    with where.open() as database:
        start = 0 if since is None else before(since)
        found = picked(database, name, random, worth, np.random.default_rng(seed), start)
        if not found.drawn and not found.others:
            raise DataError("there is no row left to ask about: all were asked about before, or none was asked for")
        database.append([Entry(ASK, found)])
    for record in (*found.drawn, *found.others):
        print(record)
    err.print(
        f"{len(found.drawn):,} rows drawn at random of {found.among:,}, and {len(found.others):,} worth asking about"
    )


@feedback.command()
@fail_in_one_line
@takes_options
def answer(
    record: Annotated[str, typer.Argument(help="the record id of a verdict")],
    label: Annotated[Literal["valid", "invalid", "unsure"], typer.Argument(help="what the row is")],
    where: JournalOptions,
    note: Annotated[str, typer.Option(help="a note, which can be erased later")] = "",
    who: Annotated[str, typer.Option("--as", help="who says so; the last answer of each counts")] = "somebody",
) -> None:
    """Say what a row is that was judged. Over HTTP, it is POST /feedback."""
    from service.journal import feedback as said

    with where.open() as database:
        one = said.found(database, record)
        database.append([said.answer(database.key, f"cli:{who}", one, label, note or None)])
    err.print(f"{record}: {label}; the verdict was {one.content.verdict(one.id.row)}")


@feedback.command(name="list")
@fail_in_one_line
@takes_options
def list_feedback(
    name: NameArgument,
    where: JournalOptions,
    unanswered: Annotated[bool, typer.Option("--unanswered", help="only rows that nobody has spoken of")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="as JSON lines, with rows that are kept")] = False,
    store: StoreOption = "model_store",
) -> None:
    """List the rows that people were asked about, or have spoken of, as CSV, with rows that are kept."""
    from service.cli.inputs import existing
    from service.journal.feedback import found, reviews

    cards = Cards(existing(store))
    with where.open() as database:
        said, documents = reviews(database, name), []
        if not said:
            raise DataError(
                f"nobody was asked about rows of model {name!r}, or spoke of one: `vouch feedback ask` asks"
            )
        for review in said:
            if unanswered and review.label is not None:
                continue
            try:
                one = found(database, review.id)
            except NoRecordError:
                continue  # pruned since
            documents.append(listed(database, review, one, cards))
    if as_json:
        for document in documents:
            print(json.dumps(document))
        return
    columns = list(dict.fromkeys(column for one in documents for column in one["row"] or ()))
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*FIELDS, *columns])
    for document in documents:
        cells = document["row"] or {}
        writer.writerow([*(document[name] for name in FIELDS), *(cells.get(column) for column in columns)])


class Cards:
    """The cards of versions, read once each."""

    def __init__(self, store: Any) -> None:
        self.store, self.known = store, dict[str, Any]()

    def of(self, model: str) -> Card | None:
        """The card of NAME@VERSION; None if it is not in the store any more."""
        from service.errors import VouchError

        if model not in self.known:
            try:
                self.known[model] = self.store.load(self.store.resolve(model)).card
            except VouchError:
                self.known[model] = None
        card: Card | None = self.known[model]
        return card


def listed(database: Database, review: Review, one: Found, cards: Cards) -> dict[str, Any]:
    """A row and what people say of it."""
    import numpy as np

    cells, card = database.cells(one.id), cards.of(one.content.model)
    shown = None
    if cells is not None and card is not None:
        spec = card.input
        (values,) = spec.cells(np.frombuffer(cells, one.content.dtype)[None, : spec.features])
        shown = dict(zip(map(str, spec.columns or range(spec.features)), values, strict=True))
    return review.document(one) | {"row": shown}
