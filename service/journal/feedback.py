"""Which rows people are asked about, what they say, and how often valid rows were refused by what they say.

Rows that are asked about because of their verdict say nothing of the others: of a thousand refused rows, all may be valid,
or none, and the rate of false alarms would be the same to whoever sees only these. So some are drawn at random among all
that were scored, and only these may calibrate, or tell a rate.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from service.errors import AmbiguousRecordError, JournalError, NoRecordError
from service.journal.chain import Record
from service.journal.contents import (
    ASK,
    CERTAIN,
    FEEDBACK,
    SCORES,
    AskContent,
    FeedbackContent,
    Label,
    RecordId,
    ScoresContent,
    parsed,
)
from service.journal.database import Database
from service.validity.conformal import CONFIDENCE, beta_quantile


@dataclass(frozen=True, slots=True)
class Found:
    """One row's verdict in the journal, and whether the row is kept."""

    id: RecordId
    record: Record
    content: ScoresContent

    has_row: bool = False

    @property
    def is_refused(self) -> bool:
        return self.content.verdict(self.id.row) == "invalid"


def found(database: Database, text: str) -> Found:
    """The verdict of a record id.

    Raises:
        NoRecordError: there is none.
    """
    one = RecordId.parse(text)
    record, content = database.scores(one.batch)
    if one.row >= content.rows:
        raise NoRecordError(f"no such record: that request had {content.rows:,} rows, counted from 0: use one of them")
    return Found(one, record, content, database.cells(one) is not None)


def found_by_request(database: Database, request: str, row: int | None = None) -> Found:
    """The verdict of a request id and a row's place in the request.

    Raises:
        NoRecordError: there is none.
        AmbiguousRecordError: there are several.
    """
    records = database.of_request(request)
    if not records:
        raise NoRecordError("the journal has no verdict of such a request: send the X-Request-Id of its answer")
    if len(records) > 1:
        raise AmbiguousRecordError(
            f"{len(records)} records have this request id: send `record` instead, as a score has it"
        )
    record, content = records[0]
    if row is None and content.rows > 1:
        raise AmbiguousRecordError(
            f"that request had {content.rows:,} rows: send its place as `row`, from 0, or `record` instead"
        )
    assert record.batch is not None
    return found(database, str(RecordId(record.batch, row or 0)))


# What was asked, and what was answered


@dataclass
class Review:
    """A row that people were asked about, or have spoken of: `drawn` at random or not, and each one's last label."""

    id: str
    drawn: bool = False
    asked: bool = False
    labels: dict[str | None, Label] = field(default_factory=dict)
    notes: list[int] = field(default_factory=list)  # numbers of the records that have one

    @property
    def label(self) -> Label | None:
        """What people say: `unsure` if they do not agree; None if nobody has answered."""
        said = set(self.labels.values())
        return said.pop() if len(said) == 1 else "unsure" if said else None


def reviews(database: Database, name: str, since: int = 0) -> list[Review]:
    """The rows of a model that people were asked about or have spoken of, in the order of the first time.

    Args:
        since: ms since the epoch.
    """
    known: dict[str, Review] = {}
    for record in database.records(ASK, FEEDBACK, since=since):
        if record.kind == ASK:
            asked = parsed(record, AskContent)
            for drawn, ids in ((True, asked.drawn), (False, asked.others)):
                for one in ids if asked.model == name else ():
                    review = known.setdefault(one, Review(one))
                    review.asked, review.drawn = True, review.drawn or drawn
        else:
            said = parsed(record, FeedbackContent)
            review = known.setdefault(said.record, Review(said.record))
            review.labels[said.key] = said.label
            if said.note is not None:
                review.notes.append(record.number)
    return [one for one in known.values() if one.asked or database.name_of(RecordId.parse(one.id)) == name]


# Whom to ask about


def picked(
    database: Database, name: str, drawn: int, others: int, generator: np.random.Generator, since: int = 0
) -> AskContent:
    """Rows of a model to ask about: some drawn at random, and those most worth asking about.

    If any rows are kept, only these: kept ones are drawn at random themselves. Nobody is asked twice. Most worth asking
    about are those whose verdict is not certain, then those whose p-value is nearest to the rate.

    Raises:
        JournalError: no rows of the model were scored.
    """
    asked = {one.id for one in reviews(database, name) if one.asked}
    batches = [
        (record.batch, parsed_content)
        for record in database.records(SCORES, since=since)
        if record.batch is not None and (parsed_content := parsed(record, ScoresContent)).name == name
    ]
    if not batches:
        raise JournalError(f"the journal has no verdict of model {name!r}")
    keeps = any(content.kept_rows() for _, content in batches)
    by_chance: list[tuple[float, RecordId]] = []
    by_worth: list[tuple[float, RecordId]] = []
    among = 0
    for batch, content in batches:
        rows = np.array(content.kept_rows() if keeps else range(content.rows), dtype=int)
        among += len(rows)
        for heap, most, keys in (
            (by_chance, drawn, generator.random(len(rows))),
            (by_worth, others, worth(content)[rows]),
        ):
            pushed(heap, most + len(asked) + 100, keys, batch, rows)
    chosen = wanted(database, by_chance, drawn, asked, keeps)
    beside = wanted(database, by_worth, others, asked | set(chosen), keeps)
    return AskContent(name, chosen, beside, among)


def pushed(heap: list[tuple[float, RecordId]], most: int, keys: np.ndarray, batch: int, rows: np.ndarray) -> None:
    """Keep the `most` smallest keys of all so far, with the records that they belong to."""
    for at in np.argsort(keys, kind="stable")[:most].tolist():
        item = (-float(keys[at]), RecordId(batch, int(rows[at])))
        if len(heap) < most:
            heapq.heappush(heap, item)
        elif item[0] > heap[0][0]:
            heapq.heapreplace(heap, item)
        else:
            break


def wanted(
    database: Database, heap: list[tuple[float, RecordId]], most: int, asked: set[str], keeps: bool
) -> list[str]:
    """The first records in the order of their keys, but for those that were asked about or whose row was erased."""
    order = [one for _, one in sorted(heap, key=lambda item: -item[0])]
    fresh = (one for one in order if str(one) not in asked and not (keeps and database.cells(one) is None))
    return [str(one) for _, one in zip(range(most), fresh, strict=False)]


def worth(content: ScoresContent) -> np.ndarray:
    """How far each row's verdict is from another one, shape (B,): 0 if it is not certain, else |log(p / rate)|."""
    if content.rule["name"] == "combined":
        rate = float(content.rule["false_alarm"])
    else:
        low, high = content.rule["percentiles"]
        rate = 2.0 * min([share for share in (low / 100.0, 1.0 - high / 100.0) if share > 0], default=0.5)
    flags = np.frombuffer(content.flags, np.uint8)
    far = np.abs(np.log(np.maximum(content.p_values, 1e-300) / rate))
    return np.where(flags & CERTAIN, far, 0.0)


# How often valid rows were refused


@dataclass(frozen=True, slots=True)
class Realised:
    """How often valid rows were refused, by what people said of rows drawn at random.

    `unsure_refused` and `unsure_accepted` rows may be valid or not: the interval holds either way.
    """

    valid: int
    refused: int
    unsure_refused: int = 0
    unsure_accepted: int = 0

    @property
    def rate(self) -> float:
        """The share of valid rows that were refused; NaN if there are none."""
        return self.refused / self.valid if self.valid else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """An interval with the true rate, with probability CONFIDENCE (Clopper and Pearson, 1934), whatever `unsure` is."""
        low, _ = clopper_pearson(self.refused, self.valid + self.unsure_accepted)
        _, high = clopper_pearson(self.refused + self.unsure_refused, self.valid + self.unsure_refused)
        return low, high

    @staticmethod
    def of(labels: Sequence[Label | None], is_refused: Sequence[bool]) -> Realised:
        """From the labels of rows drawn at random, and which of them a rule refuses."""
        pairs = list(zip(labels, is_refused, strict=True))
        return Realised(
            sum(label == "valid" for label, _ in pairs),
            sum(label == "valid" and one for label, one in pairs),
            sum(label == "unsure" and one for label, one in pairs),
            sum(label == "unsure" and not one for label, one in pairs),
        )


def clopper_pearson(hits: int, trials: int) -> tuple[float, float]:
    """An interval that contains the probability of a hit with probability CONFIDENCE at least."""
    tail = (1.0 - CONFIDENCE) / 2.0
    low = beta_quantile(hits, trials - hits + 1, tail) if hits else 0.0
    high = beta_quantile(hits + 1, trials - hits, 1.0 - tail) if hits < trials else 1.0
    return low, high


# Rows


@dataclass(frozen=True, slots=True)
class KeptRows:
    """Rows that are kept, shape (N, W), with their record ids; `lacking` had none, or are of another input."""

    ids: list[str]
    rows: np.ndarray
    lacking: int


def kept_rows(database: Database, ids: Sequence[str], input_digest: str, width: int) -> KeptRows:
    """The rows of records, as they were read, of those that read the same as a version does.

    Args:
        width: of the version's rows.
    """
    there, rows, lacking = [], [], 0
    for text in ids:
        one = found(database, text)
        cells = database.cells(one.id)
        if cells is None or one.content.input != input_digest or one.content.width != width:
            lacking += 1
            continue
        there.append(text)
        rows.append(np.frombuffer(cells, one.content.dtype))
    return KeptRows(there, np.stack(rows) if rows else np.zeros((0, width)), lacking)


def random_share(database: Database, name: str, since: int) -> list[str]:
    """The record ids of a model's rows that were kept when they were scored, at random, and not erased."""
    ids = []
    for record in database.records(SCORES, since=since):
        content = parsed(record, ScoresContent)
        if content.name == name and record.batch is not None:
            each = (RecordId(record.batch, row) for row in content.kept_rows())
            ids += [str(one) for one in each if database.cells(one) is not None]
    return ids
