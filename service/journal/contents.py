"""What records say, and how it is written: msgpack, with the numbers of many rows as bytes.

A record of verdicts covers the rows of a request: one HMAC and one insertion for all of them. It holds no cell of a row: of
each it has a keyed hash, and its reason is a name.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np

from service.errors import JournalError, NoRecordError
from service.journal.chain import HASH_BYTES, Record

SCORES, FEEDBACK, ASK, ERASE, PRUNE, LOST = "scores", "feedback", "ask", "erase", "prune", "lost"
CALIBRATE = "calibrate"  # which rows a version was calibrated on
VALID, CERTAIN, RELIABLE = 1, 2, 4  # bits of a row's flags
EPOCH_MS = 1_577_836_800_000  # 2020: ids of 63 bits last until 2159
ID_BITS = 21  # of an id below its milliseconds
Label = Literal["valid", "invalid", "unsure"]
S = TypeVar("S", bound=msgspec.Struct)


class ScoresContent(msgspec.Struct):
    """Verdicts on B rows.

    Attributes:
        key: id of the API key; None if none are configured.
        model: NAME@VERSION; `digest`: of its files; `input`: of what it reads (`Card.input_digest`).
        rule: its name, with the rate or the percentiles.
        flags: B bytes of VALID, CERTAIN and RELIABLE.
        reasons: the names that occur; `reason`: B bytes, 0 for none, or a place in them, from 1.
        p_value: of the rule, B numbers, little-endian float64; `log_likelihood` as well, nats.
        hashes: B keyed hashes of the rows as they were read, 16 bytes each.
        dtype, width: of the rows as they were read, such as <f4.
        violations: row, column and kind of each cell that breaks its column's domain.
        kept: the rows that are kept as well, in a table that can be erased; None: all.
        share: of the rows that are kept, in expectation; they are drawn at random.
        trial: whether the rows were only tried: nobody is asked about them, and none is kept.
    """

    key: str | None
    model: str
    digest: str
    input: str
    rule: dict[str, Any]
    rows: int
    flags: bytes
    reasons: list[str]
    reason: bytes
    p_value: bytes
    log_likelihood: bytes
    hashes: bytes
    dtype: str
    width: int
    violations: list[tuple[int, str | None, str]] = []
    kept: list[int] | None = []
    share: float = 0.0
    trial: bool = False

    def __post_init__(self) -> None:
        """Raise unless everything is there for each row: a content that was tampered with is read, too."""
        lengths = {len(self.flags), len(self.reason), len(self.p_value) / 8, len(self.log_likelihood) / 8}
        if lengths | {len(self.hashes) / HASH_BYTES, self.rows} != {self.rows}:
            raise ValueError("not as long as there are rows")
        ends = min(self.kept or (0,)), max(self.kept or (0,))
        if max(self.reason, default=0) > len(self.reasons) or (self.kept and not 0 <= ends[0] <= ends[1] < self.rows):
            raise ValueError("names what is not there")

    def kept_rows(self) -> list[int]:
        """The rows that are kept, if they were not erased."""
        return list(range(self.rows)) if self.kept is None else self.kept

    def hash_of(self, row: int) -> bytes:
        return self.hashes[row * HASH_BYTES : (row + 1) * HASH_BYTES]

    def verdict(self, row: int) -> str:
        return "valid" if self.flags[row] & VALID else "invalid"

    def reason_of(self, row: int) -> str:
        """Why a row is invalid: a name, empty for valid ones."""
        return self.reasons[self.reason[row] - 1] if self.reason[row] else ""

    @property
    def name(self) -> str:
        """The model's name, without its version."""
        return self.model.partition("@")[0]

    @property
    def p_values(self) -> np.ndarray:
        return np.frombuffer(self.p_value, "<f8")

    def row_document(self, row: int) -> dict[str, Any]:
        """What is said of one row, for JSON."""
        flags = self.flags[row]
        found = [{"column": column, "kind": kind} for at, column, kind in self.violations if at == row]
        return {
            "verdict": self.verdict(row),
            "reason": self.reason_of(row) or None,
            "certain": bool(flags & CERTAIN),
            "reliable": bool(flags & RELIABLE),
            "p_value": float(self.p_values[row]),
            "log_likelihood": float(np.frombuffer(self.log_likelihood, "<f8")[row]),
            "hash": self.hash_of(row).hex(),
            **({"violations": found} if found else {}),
        }


class FeedbackContent(msgspec.Struct):
    """What a person says of a row; `key` is who says so. The note itself lies in a table that can be erased.

    Attributes:
        model: the name of the model that judged the row.
        note: its keyed hash, if there is one.
        has_row: whether the row came along, and is kept.
    """

    key: str | None
    record: str
    model: str
    label: Label
    note: bytes | None = None
    has_row: bool = False


class AskContent(msgspec.Struct):
    """Rows that people are asked about.

    `drawn` ones were drawn at random among all that were scored, whatever their verdicts, `others` were chosen. `among` is
    how many there were to draw from.
    """

    model: str
    drawn: list[str]
    others: list[str]
    among: int


class EraseContent(msgspec.Struct):
    """What was erased of the rows and notes: of these records, or of all of a model, or of any, up to a record's number."""

    records: list[str] | None
    model: str | None
    through: int


class PruneContent(msgspec.Struct):
    """The records up to a number were deleted; `mac` is that of the last one of them."""

    through: int
    mac: bytes
    records: int


class LostContent(msgspec.Struct):
    """Records up to a number were once written, by a head in a file beside the journal, and are not there any more.

    `number` is None if that file was missing itself.
    """

    number: int | None
    mac: bytes | None


@dataclass(frozen=True, slots=True, order=True)
class RecordId:
    """The id of one row's verdict: its batch, and its place in it."""

    batch: int
    row: int

    def __str__(self) -> str:
        return f"{batch_text(self.batch)}.{self.row}"

    @staticmethod
    def parse(text: str) -> RecordId:
        """An id as a score has it.

        Raises:
            NoRecordError: it is none.
        """
        batch, _, row = text.partition(".")
        try:
            if len(batch) != 13 or not row.isdecimal() or len(row) > 9:
                raise ValueError
            number = int.from_bytes(base64.b32hexdecode(f"{batch.upper()}==="))
            found = RecordId(number, int(row))
        except (ValueError, binascii.Error):
            found = None
        if found is None or str(found) != text or found.batch >= 2**63:
            raise NoRecordError("no such record: expected an id as `record` of a score has it")
        return found


def batch_text(batch: int) -> str:
    """A batch's number as 13 letters and digits, in the order of time."""
    return base64.b32hexencode(batch.to_bytes(8)).decode().rstrip("=").lower()


def next_batch(last: int) -> int:
    """A number for a batch, higher than the last one of this process, from the time and 21 random bits."""
    return max(last + 1, (now_ms() - EPOCH_MS) << ID_BITS | secrets.randbits(ID_BITS))


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def time_text(ms: int) -> str:
    """A time of a record, in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")


def parsed(record: Record, kind: type[S]) -> S:
    """The content of a record.

    Raises:
        JournalError: it is not what its kind has.
    """
    try:
        return msgspec.msgpack.decode(record.content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise JournalError(f"record {record.number} of the journal cannot be read: `vouch journal verify`") from None


def little_endian(rows: np.ndarray) -> np.ndarray:
    """Rows as they were read, shape (B, W), as they are kept: little-endian, -0.0 as 0.0."""
    plain = rows + 0.0 if rows.dtype.kind == "f" else rows
    return np.ascontiguousarray(plain.astype(rows.dtype.newbyteorder("<"), copy=False))


def each_row(rows: np.ndarray) -> list[bytes]:
    """The bytes of each of some rows, shape (B, W), as they are kept and hashed."""
    return bytes_of_each(little_endian(rows))


def bytes_of_each(plain: np.ndarray) -> list[bytes]:
    """The bytes of each row, shape (B, W)."""
    raw, size = plain.tobytes(), plain.dtype.itemsize * plain.shape[1]
    return [raw[at : at + size] for at in range(0, len(raw), size)]
