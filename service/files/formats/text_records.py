"""Records among the bytes of a text file: where each begins and ends, and how many cells it has."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, replace

import numpy as np

from service.files.dialect import Dialect


@dataclass(frozen=True, slots=True)
class Records:
    """Where records start and end in some bytes, shape (N,) each, without blank lines.

    The first `used` bytes hold whole records.
    """

    starts: np.ndarray
    ends: np.ndarray
    used: int

    def only(self, chosen: np.ndarray | slice) -> Records:
        """Some of the records, by a mask of shape (N,), or a slice."""
        return replace(self, starts=self.starts[chosen], ends=self.ends[chosen])


def records_in(text: bytes, dialect: Dialect | None, is_last: bool) -> Records:
    """Find CSV records, whose quoted cells may hold line ends, or lines if `dialect` is None.

    An unfinished record is left for the next bytes; at the end of the file it counts as a record.
    """
    if dialect is None or dialect.quote.encode() not in text:
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")) + 1
    else:
        ends = np.array(quoted_ends(text, dialect), dtype=np.int64)
    used = int(ends[-1]) if len(ends) else 0
    if is_last and used < len(text):
        used, ends = len(text), np.append(ends, len(text))
    starts = np.concatenate([ends[:0], [0], ends[:-1]])[: len(ends)]
    there = ends - starts > 2
    for at in np.flatnonzero(~there).tolist():
        there[at] = bool(text[starts[at] : ends[at]].strip(b"\r\n"))
    return Records(starts[there], ends[there], used)


def quoted_ends(text: bytes, dialect: Dialect) -> list[int]:
    """Offsets at which records end, found by the same parser that will read them."""
    lines = text.split(b"\n")[:-1]
    up_to = np.cumsum([len(line) + 1 for line in lines]).tolist()
    ends: list[int] = []
    at = 0
    while at < len(lines):
        rest = (lines[line].decode("latin-1") + "\n" for line in range(at, len(lines)))
        reader = dialect.reader(rest)
        try:
            for _ in reader:
                ends.append(up_to[at + reader.line_num - 1])
            break
        except csv.Error:
            at += reader.line_num
            if at == len(lines):  # perhaps inside a quoted cell that ends in the next bytes
                break
            # Not valid CSV: what was read becomes a record of its own, refused later with its row number.
            ends.append(up_to[at - 1])
    return ends


def lines_of(text: bytes, found: Records, line: int) -> np.ndarray:
    """The line in which each record begins, shape (N,), if `line` is that of the text's first byte."""
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
    return np.asarray(line + np.searchsorted(ends, found.starts))


def cells_of(text: bytes, found: Records, dialect: Dialect, encoding: str) -> np.ndarray:
    """The number of cells of each record: shape (N,); 0 if its quotes are misplaced."""
    mark = dialect.separator.encode(encoding)
    if len(mark) > 1 or mark == b" " or dialect.quote.encode() in text:
        records = (text[start:end] for start, end in zip(found.starts.tolist(), found.ends.tolist(), strict=True))
        counts = [sum(map(len, rows_in(record.decode(encoding, errors="replace"), dialect))) for record in records]
        return np.array(counts, dtype=np.int64)
    up_to = np.concatenate([[0], np.cumsum(np.frombuffer(text, np.uint8) == mark[0])])
    return np.asarray(up_to[found.ends] - up_to[found.starts] + 1)


def rows_in(record: str, dialect: Dialect) -> list[list[str]]:
    """A record's cells; nothing if it is damaged, which is said when it is scored."""
    try:
        return [cells for cells in dialect.reader(io.StringIO(record, newline="")) if cells]
    except csv.Error:
        return []
