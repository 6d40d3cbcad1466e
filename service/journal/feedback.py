"""Which rows people are asked about, what they say, and how often valid rows were refused by what they say.

Rows that are asked about because of their verdict say nothing of the others: of a thousand refused rows, all may be valid,
or none, and the rate of false alarms would be the same to whoever sees only these. So some are drawn at random among all
that were scored, and only these may calibrate, or tell a rate.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from service.errors import AmbiguousRecordError, JournalError, NoRecordError
from service.journal.chain import JournalKey, Record
from service.journal.contents import (
    ASK,
    CERTAIN,
    FEEDBACK,
    SCORES,
    VALID,
    AskContent,
    FeedbackContent,
    Label,
    RecordId,
    ScoresContent,
    parsed,
    time_text,
)
from service.journal.database import NO_RECORD, Database, Entry
from service.validity.conformal import CONFIDENCE, beta_quantile

MOST_RECENT = 2_000  # records of verdicts that are looked at for the last refused or uncertain rows


@dataclass(frozen=True, slots=True)
class Found:
    """One row's verdict in the journal, and whether the row is kept."""

    id: RecordId
    record: Record
    content: ScoresContent

    has_row: bool = False

    @property
    def row_was_kept(self) -> bool:
        """Whether the row was kept when it was scored; it may have been erased since."""
        return self.id.row in self.content.kept_rows()

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
        raise no_record()
    return Found(one, record, content, database.cells(one) is not None)


def no_record() -> NoRecordError:
    return NoRecordError(NO_RECORD)


def found_by_request(
    database: Database, request: str, row: int | None = None, may_use: Callable[[str], bool] = lambda name: True
) -> Found:
    """The verdict of a request id and a row's place in the request, of models that may be used.

    Raises:
        NoRecordError: there is none.
        AmbiguousRecordError: there are several.
    """
    records = [one for one in database.of_request(request) if may_use(one[1].name)]
    if not records:
        raise NoRecordError("the journal has no verdict of such a request: send the X-Request-Id of its answer")
    if len(records) > 1:
        raise AmbiguousRecordError("several records have this request id: send `record` instead, as a score has it")
    record, content = records[0]
    if row is None and content.rows > 1:
        raise AmbiguousRecordError("that request had several rows: send `row`, the place from 0, or `record` instead")
    assert record.batch is not None
    return found(database, str(RecordId(record.batch, row or 0)))


# What was asked, and what was answered


def answer(
    key: JournalKey,
    who: str | None,
    one: Found,
    label: Label,
    note: str | None,
    request: str | None = None,
    cells: Sequence[tuple[int, int, bytes]] = (),
) -> Entry:
    """What a person says of a row, to be appended; `cells` are the row, if it came along."""
    hashed = None if note is None else key.hash(note.encode())
    content = FeedbackContent(who, str(one.id), one.content.name, label, hashed, bool(cells))
    return Entry(FEEDBACK, content, request=request, cells=cells, note=note)


@dataclass
class Review:
    """A row that people were asked about, or have spoken of: `drawn` at random or not, and each one's last label."""

    id: str
    drawn: bool = False
    asked: bool = False
    labels: dict[str | None, Label] = field(default_factory=dict)

    @property
    def label(self) -> Label | None:
        """What people say: `unsure` if they do not agree; None if nobody has answered."""
        said = set(self.labels.values())
        return said.pop() if len(said) == 1 else "unsure" if said else None

    def document(self, one: Found) -> dict[str, Any]:
        """What is known of its verdict, and what people say of it, for JSON."""
        content, row = one.content, one.id.row
        return {
            "record": self.id,
            "model": content.model,
            "time": time_text(one.record.time),
            "verdict": content.verdict(row),
            "reason": content.reason_of(row) or None,
            "p_value": float(content.p_values[row]),
            "drawn": self.drawn,
            "label": self.label,
        }


def reviews(database: Database, name: str) -> list[Review]:
    """The rows of a model that people were asked about or have spoken of, in the order of the first time."""
    known: dict[str, Review] = {}
    for record in database.records(ASK, FEEDBACK):
        if record.kind == ASK:
            asked = parsed(record, AskContent)
            for drawn, ids in ((True, asked.drawn), (False, asked.others)):
                for one in ids if asked.model == name else ():
                    review = known.setdefault(one, Review(one))
                    review.asked, review.drawn = True, review.drawn or drawn
        else:
            said = parsed(record, FeedbackContent)
            if said.model != name:
                continue
            review = known.setdefault(said.record, Review(said.record))
            review.labels[said.key] = said.label
    return list(known.values())


def recent(
    database: Database, name: str, which: Literal["refused", "uncertain"], known: Sequence[Review]
) -> Iterator[Review]:
    """The last rows of a model that were refused, or whose verdict was not certain, latest first; no trial rows."""
    said, bit = {one.id: one for one in known}, VALID if which == "refused" else CERTAIN
    for record in database.last_scores(MOST_RECENT):
        content = parsed(record, ScoresContent)
        if content.name != name or content.trial or record.batch is None:
            continue
        for row in np.flatnonzero(np.frombuffer(content.flags, np.uint8) & bit == 0).tolist():
            one = str(RecordId(record.batch, row))
            yield said.get(one, Review(one))


def realised(database: Database, known: Sequence[Review]) -> Realised:
    """How often valid rows were refused, by what people said of rows that were drawn at random; without pruned ones."""
    drawn = [one for one in known if one.drawn and one.label is not None and database.holds(one.id)]
    return Realised.of([one.label for one in drawn], [found(database, one.id).is_refused for one in drawn])


def invalid_hashes(database: Database, said: Sequence[Review]) -> frozenset[bytes]:
    """The keyed hashes of rows that more people call invalid than valid; equal rows are one."""
    votes: Counter[bytes] = Counter()
    for one in said:
        if one.label in ("valid", "invalid"):
            row = found(database, one.id)
            votes[row.content.hash_of(row.id.row)] += 1 if one.label == "invalid" else -1
    return frozenset(row for row, number in votes.items() if number > 0)


def answered_line(database: Database, drawn: Sequence[Review]) -> list[str]:
    """A warning if not all rows that were drawn are answered; of the refused ones, too."""
    answered = [one for one in drawn if one.label is not None]
    if len(answered) == len(drawn):
        return []
    refused = [one for one in drawn if found(database, one.id).is_refused]
    said = sum(one.label is not None for one in refused)
    return [
        f"{len(answered):,} of {len(drawn):,} rows that were drawn are answered, of the refused ones {said:,} of "
        f"{len(refused):,}: unless people answer these as often as others, no rate holds"
    ]


# Whom to ask about


def picked(
    database: Database, name: str, drawn: int, others: int, generator: np.random.Generator, since: int = 0
) -> AskContent:
    """Rows of a model to ask about: some drawn at random, and those most worth asking about.

    If any rows are kept, only these: kept ones are drawn at random themselves. What was drawn before is not drawn again; a
    row that was asked about because of its verdict may be drawn as well, since to leave it out would favour other verdicts.
    Most worth asking about are rows whose verdict is not certain, then those whose p-value is nearest to the rate.

    Raises:
        JournalError: no rows of the model were scored.
    """
    said = reviews(database, name)
    before = (
        {RecordId.parse(one.id) for one in said if one.drawn},
        {RecordId.parse(one.id) for one in said if one.asked},
    )
    by_chance: list[tuple[float, RecordId]] = []
    by_worth: list[tuple[float, RecordId]] = []
    among, is_known = 0, False
    for batch, content, rows in candidates(database, name, since, generator):
        is_known = True
        for heap, most, keys, asked in (
            (by_chance, drawn, generator.random(len(rows)), before[0]),
            (by_worth, others, worth(content)[rows], before[1]),
        ):
            fresh = np.array([RecordId(batch, row) not in asked for row in rows.tolist()], dtype=bool)
            among += int(fresh.sum()) if heap is by_chance else 0
            # Rows that are drawn are not asked about twice: so many more are looked at.
            pushed(heap, most if heap is by_chance else most + drawn, keys[fresh], batch, rows[fresh])
    if not is_known:
        raise JournalError(
            f"the journal has no verdict of model {name!r}: give a name as it is served, without a version"
        )
    chosen = [str(one) for _, one in sorted(by_chance, key=lambda item: -item[0])]
    beside = [str(one) for _, one in sorted(by_worth, key=lambda item: -item[0])]
    return AskContent(name, chosen, [one for one in beside if one not in set(chosen)][:others], among)


def candidates(
    database: Database, name: str, since: int, generator: np.random.Generator
) -> Iterator[tuple[int, ScoresContent, np.ndarray]]:
    """The batches of a model with the rows that may be drawn, each row as likely to be among them as any other.

    If any rows are kept, these are the kept ones that were not erased. Where they were kept with different shares, those of
    a larger one are thinned out to the smallest. Rows that were only tried are not among them.
    """

    def contents() -> Iterator[tuple[int, ScoresContent]]:
        for record in database.records(SCORES, since=since):
            content = parsed(record, ScoresContent)
            if content.name == name and not content.trial and record.batch is not None:
                yield record.batch, content

    shares = {content.share for _, content in contents()} - {0.0}
    for batch, content in contents():
        rows = np.arange(content.rows)
        if shares:
            there = database.rows_kept(batch)
            rows = np.array([row for row in content.kept_rows() if row in there], dtype=int)
            if content.share > (least := min(shares)):
                rows = rows[generator.random(len(rows)) < least / content.share]
        yield batch, content, rows


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
    found = candidates(database, name, since, np.random.default_rng(0))
    return [str(RecordId(batch, row)) for batch, content, rows in found if content.share for row in rows.tolist()]
