"""`vouch journal verify`, `export`, `prune` and `erase`."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.app import app
from service.cli.console import err, fail_in_one_line
from service.cli.options import takes_options
from service.errors import DataError

if TYPE_CHECKING:
    from service.journal.database import Database

journal = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The journal of verdicts: VOUCH_JOURNAL.")
app.add_typer(journal, name="journal")
SECONDS = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
BYTES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class JournalOptions:
    """Options that name a journal."""

    journal: Annotated[Path | None, typer.Option("--journal", envvar="VOUCH_JOURNAL", help="the journal's file")] = None
    journal_key: Annotated[
        Path | None, typer.Option("--journal-key", envvar="VOUCH_JOURNAL_KEY", help="the file with its key")
    ] = None

    def open(self) -> Database:
        """The journal.

        Raises:
            DataError: it is not named, or its key is not.
            JournalError: it cannot be opened.
        """
        from service.journal.chain import JournalKey
        from service.journal.database import Database

        if self.journal is None or self.journal_key is None:
            missing = "--journal (or VOUCH_JOURNAL)" if self.journal is None else "--journal-key (or VOUCH_JOURNAL_KEY)"
            raise DataError(f"{missing}: name the file")
        return Database(self.journal, JournalKey.read(self.journal_key))


@journal.command()
@fail_in_one_line
@takes_options
def verify(
    where: JournalOptions,
    head: Annotated[
        str | None, typer.Option(help="NUMBER:HASH, as an earlier run printed it: the chain has to contain it")
    ] = None,
) -> None:
    """Check every record against the key, and what is kept beside them; print the head, to be kept elsewhere.

    Exit status 1 if anything is wrong.
    """
    from service.journal.chain import Head, JournalKey
    from service.journal.database import Database
    from service.journal.verification import verified

    if where.journal is None or where.journal_key is None:
        where.open()
    assert where.journal is not None
    assert where.journal_key is not None
    anchor = None if head is None else Head.parse(head)
    with Database(where.journal, JournalKey.read(where.journal_key), checks_head=False) as database:
        result = verified(database, anchor)
    for fault in (*result.faults, *result.lost):
        err.print(f"{where.journal}: {fault}", markup=False, highlight=False)
    pruned = f", from {result.checkpoint.number + 1:,} on: the others were pruned" if result.checkpoint.number else ""
    err.print(f"{result.records:,} records{pruned}; {result.rows:,} rows kept, {result.erased:,} rows and notes erased")
    if result.faults or result.lost:
        raise typer.Exit(1)
    print(result.head)


@journal.command()
@fail_in_one_line
@takes_options
def export(
    where: JournalOptions,
    rows: Annotated[bool, typer.Option("--rows", help="also notes, and the rows that are kept")] = False,
    output: Annotated[Path | None, typer.Option("--out", help="file to write; default: stdout")] = None,
) -> None:
    """Write every record as a line of JSON; of verdicts, a line for each row."""
    from service.journal.maintenance import exported
    from service.system.files import written_whole

    with where.open() as database:
        if output is None:
            for line in exported(database, rows):
                sys.stdout.write(line.decode())
        else:
            with written_whole(output, mode=0o600) as file:
                for line in exported(database, rows):
                    file.write(line)


@journal.command()
@fail_in_one_line
@takes_options
def prune(
    where: JournalOptions,
    older_than: Annotated[str | None, typer.Option(help="an age, such as 90d, 12h or 4w")] = None,
    larger_than: Annotated[str | None, typer.Option(help="a size, such as 500MB or 2GB; the oldest records go")] = None,
) -> None:
    """Delete the oldest records, with their rows and notes. The chain goes on from a sealed checkpoint."""
    from service.journal.maintenance import pruned

    if older_than is None and larger_than is None:
        raise DataError("--older-than or --larger-than: say what goes")
    size = None if larger_than is None else size_of(larger_than)
    with where.open() as database:
        number = pruned(database, None if older_than is None else before(older_than), size)
    err.print(f"{number:,} records pruned")


@journal.command()
@fail_in_one_line
@takes_options
def erase(
    where: JournalOptions,
    record: Annotated[list[str] | None, typer.Option(help="a record id; may be repeated")] = None,
    model: Annotated[str | None, typer.Option(help="of this model")] = None,
    older_than: Annotated[str | None, typer.Option(help="of records of this age, such as 30d")] = None,
    everything: Annotated[bool, typer.Option("--all", help="of all records")] = False,
) -> None:
    """Erase rows that are kept and people's notes, and write the file anew without them. The verdicts stay."""
    from service.journal.maintenance import erased

    if not (record or model or older_than or everything):
        raise DataError("--record, --model, --older-than or --all: say whose rows and notes are to be erased")
    with where.open() as database:
        number = erased(database, record, model, None if older_than is None else before(older_than))
    err.print(f"{number:,} rows and notes erased")


def before(age: str) -> int:
    """The time of so long ago, in ms since the epoch.

    Raises:
        DataError: the text is no age.
    """
    return int(1000 * (time.time() - seconds_of(age)))


def seconds_of(age: str) -> float:
    """Seconds of an age such as 30d.

    Raises:
        DataError: the text is none.
    """
    parts = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([mhdw])", age.strip())
    if parts is None:
        raise DataError(f"{age}: expected an age: a number and m, h, d or w, such as 30d")
    return float(parts[1]) * SECONDS[parts[2]]


def size_of(text: str) -> int:
    """Bytes of a size such as 500MB.

    Raises:
        DataError: the text is none.
    """
    parts = re.fullmatch(r"(\d{1,12})\s*(KB|MB|GB|)", text.strip().upper())
    if parts is None:
        raise DataError(f"{text}: expected a size, such as 500MB or 2GB")
    return int(parts[1]) * BYTES[parts[2]]
