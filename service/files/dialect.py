"""Text files of rows as people have them: encodings, separators, quotes, headers. One dialect for every door.

bytes  ->  `decoded`: text  ->  `Dialect.of`: separator and quotes, by the first lines  ->  `records`: lists of cells
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import IO, TYPE_CHECKING, Literal

from service.data.numbers import Decimal
from service.errors import DataError
from service.system.frozen import Frozen

if TYPE_CHECKING:
    from _csv import Reader

SEPARATORS = (",", ";", "\t", "|", " ")
RARE_FIRST = "\t;|, "
LOOKED_AT = 200  # lines
SNIFFED = 2**18  # bytes of a file that is not UTF-8, by which its encoding is detected
ESCAPED = '\\"'  # a quote within quotes, unless it ends a cell whose last character is a backslash
MAX_UNPACKED = 16 * 2**30
BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What encodings are chosen from, the usual ones first.
LATIN = ("cp1252", "cp1250")
OTHERS = ("cp1251", "koi8_r", "cp1253", "cp1255", "cp1256", "shift_jis", "euc_jp", "gb18030", "big5", "euc_kr")
# A cell may be as long as the file: the default limit of 131,072 characters would refuse columns that nobody reads.
csv.field_size_limit(2**31 - 1)


class DamagedTextError(DataError):
    """Bytes that are no text, or text that is no table."""


@dataclass(frozen=True, slots=True)
class TextOptions:
    r"""What a user says about text files; None: as the file shows.

    Attributes:
        separator: between cells; `\t` and `tab` mean a tab.
        decimal: the decimal mark.
        encoding: such as cp1252.
        header: whether the first line names the columns.
        bad_rows: whether a file with rows that are not divided as its header is refused, or these rows are passed over.
    """

    separator: str | None = None
    decimal: Decimal | None = None
    encoding: str | None = None
    header: bool | None = None
    bad_rows: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        if self.separator is not None:
            chosen = {"\\t": "\t", "tab": "\t", "space": " "}.get(self.separator, self.separator)
            if len(chosen) != 1 or chosen in '"\r\n':
                raise DataError("--sep: expected one character, such as ';', or tab")
            object.__setattr__(self, "separator", chosen)
        if self.encoding is not None:
            try:
                codecs.lookup(self.encoding)
            except LookupError:
                raise DataError("--encoding: no such encoding; expected one such as utf-8 or cp1252") from None


AS_SHOWN = TextOptions()


class Dialect(Frozen):
    """How the records of a text file are written.

    Attributes:
        separator: between cells.
        quote: around cells that hold a separator or a line end.
        escape: whether a backslash stands before a quote within quotes; otherwise the quote is doubled.
        skipped: lines before the header: a line `sep=;`, comments.
    """

    separator: str = ","
    quote: Literal['"', "'"] = '"'
    escape: bool = False
    skipped: int = 0

    @staticmethod
    def of(text: str, options: TextOptions = AS_SHOWN) -> Dialect:
        """The dialect of a file, by its first lines."""
        lines = list(islice(io.StringIO(text[: 2**22], newline=""), LOOKED_AT))
        skipped, separator = 0, options.separator
        first = lines[0].strip('\r\n"') if lines else ""
        if first.lower().startswith("sep=") and len(first) == 5:  # what Excel writes and reads
            skipped, separator = 1, separator or first[4]
        quote: Literal['"', "'"] = "'" if is_single_quoted(lines[skipped:]) else '"'
        separator = separator or separator_of([line for line in lines[skipped:] if not line.startswith("#")], quote)
        escape = quote == '"' and any(ESCAPED in line for line in lines) and has_misplaced_quotes(lines, separator)
        dialect = Dialect(separator=separator, quote=quote, escape=escape, skipped=skipped)
        return dialect.model_copy(update={"skipped": skipped + comments(lines[skipped:], dialect)})

    def reader(self, lines: Iterator[str] | IO[str]) -> Reader:
        """A csv reader of lines."""
        # The library would also take away all backslashes outside of quotes.
        return csv.reader(
            (line.replace(ESCAPED, '""') for line in lines) if self.escape else lines,
            delimiter=self.separator,
            quotechar=self.quote,
            skipinitialspace=self.separator in " ,;|",
            strict=True,
        )

    def first_rows(self, text: str) -> list[list[str]]:
        """The records of a text that may end, or be damaged, within one."""
        rows = []
        source = io.StringIO(text, newline="")
        for _ in range(self.skipped):
            source.readline()
        with contextlib.suppress(csv.Error):
            for cells in self.reader(source):
                rows.append(cells)
        return [cells for cells in rows if cells]

    def __str__(self) -> str:
        names = {"\t": "tabs", " ": "spaces", ";": "semicolons", "|": "bars"}
        return f"separated by {names.get(self.separator, repr(self.separator))}" if self.separator != "," else ""


def has_misplaced_quotes(lines: Sequence[str], separator: str) -> bool:
    """Whether quotes are misplaced if backslashes before them mean nothing; the last line may end within quotes."""
    try:
        for _ in csv.reader(iter(lines), delimiter=separator, strict=True):
            pass
    except csv.Error as error:
        return "unexpected end of data" not in str(error)
    return False


def is_single_quoted(lines: Sequence[str]) -> bool:
    """Whether cells are quoted by apostrophes: none by double quotes, and most lines with two apostrophes or more."""
    some = [line for line in lines if line.strip()]
    quoted = [
        line for line in some if line.count("'") >= 2 and ("'," in line or "';" in line or line.strip()[0] == "'")
    ]
    return not any('"' in line for line in some) and len(quoted) > len(some) / 2


def separator_of(lines: Sequence[str], quote: str) -> str:
    """The separator that divides most lines into the same number of cells, more than one."""
    scores: dict[str, float] = {}
    for separator in SEPARATORS:
        rows = list(cells_of(lines, separator, quote))
        if not rows:
            continue
        width, count = Counter(map(len, rows)).most_common(1)[0]
        # Of words in a single column of text, some lines may happen to have as many spaces.
        is_headed = len(rows[0]) > 1 and len(rows[0]) in (width, width - 1)
        # Without a header that is divided alike, what stands above it is told from a column of text by rarer signs.
        if width > 1 and (is_headed or (separator in "\t;|" and count > 0.8 * len(rows) > 3)):
            scores[separator] = count / len(rows) - (0.3 if separator == " " else 0.0)
    if not scores:
        return next((one for one in SEPARATORS if not any(one in line for line in lines)), ",")
    best = max(scores.values())
    # Commas and spaces are often part of a cell, tabs and semicolons hardly ever.
    return min((one for one in scores if scores[one] > best - 0.1), key=RARE_FIRST.index)


def cells_of(lines: Sequence[str], separator: str, quote: str) -> Iterator[list[str]]:
    """The records among the first lines; an unfinished or damaged one ends them."""
    reader = csv.reader(iter(lines), delimiter=separator, quotechar=quote, skipinitialspace=True)
    try:
        yield from (row for row in reader if row and any(cell.strip() for cell in row))
    except csv.Error:
        return


def comments(lines: Sequence[str], dialect: Dialect) -> int:
    """How many lines at the top are comments: they begin with #, and are not divided as the other lines are."""
    widths = Counter(line.count(dialect.separator) for line in lines if not line.startswith("#") and line.strip())
    usual = widths.most_common(1)[0][0] if widths else 0
    count = 0
    for line in lines:
        if not line.startswith("#") or (line[1:2].strip() and line.count(dialect.separator) == usual > 0):
            break
        count += 1
    return count


def decoded(content: bytes | bytearray, encoding: str | None = None) -> tuple[str, str]:
    """A file's text, and its encoding if it is neither given nor UTF-8.

    Raises:
        DataError: the bytes are no text, or not in the given encoding.
    """
    if encoding is not None:
        try:
            return content.decode(encoding).removeprefix("\ufeff"), ""
        except UnicodeDecodeError as error:
            line = content[: error.start].count(b"\n") + 1
            raise DamagedTextError(f"line {line} is not {encoding} text: see --encoding") from None
    detected = encoding_of(content)
    try:
        return content.decode(detected), "" if detected in ("utf-8", "utf-8-sig") else detected
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DamagedTextError(f"line {line} is not {detected} text: see --encoding") from None


def encoding_of(content: bytes | bytearray) -> str:
    """The encoding that bytes are in: by their mark, or UTF-8 if they are, or by a detector.

    Raises:
        DataError: the bytes are no text.
    """
    for mark, name in BOMS:
        if content.startswith(mark):
            return name
    some = content[:4096]
    if b"\x00" in some:
        even, odd = some[::2].count(0), some[1::2].count(0)
        if max(even, odd) > 0.3 * len(some) / 2 > min(even, odd):
            return "utf-16-le" if odd > even else "utf-16-be"
        raise DamagedTextError("is not a text file")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and error.start > len(content) - 4:
            return "utf-8"
        check_is_not_damaged(content)
    else:
        return "utf-8"
    from charset_normalizer import from_bytes

    lines = b"".join(line for line in content[: 64 * SNIFFED].splitlines(keepends=True) if not line.isascii())
    best = from_bytes(lines[:SNIFFED], cp_isolation=[*LATIN, *OTHERS]).best()
    beyond = [byte for byte in lines if byte > 127]
    is_foreign = len(set(beyond)) > 3 and len(beyond) > sum(byte < 128 and chr(byte).isalpha() for byte in lines)
    if best is not None and best.encoding in OTHERS and is_foreign:
        return best.encoding
    # To the detector all Latin encodings look alike in a short text.
    return min(LATIN, key=lambda name: strangeness(lines, name))


def check_is_not_damaged(content: bytes | bytearray) -> None:
    """Raise if bytes are UTF-8 but for a few.

    Raises:
        DamagedTextError: names the first line with such bytes.
    """
    text = content.decode(errors="replace")
    wrong = text.count("\ufffd")
    if len(text) - len(text.encode("ascii", "ignore")) - wrong > wrong:
        line = text[: text.index("\ufffd")].count("\n") + 1
        raise DamagedTextError(f"line {line} is not UTF-8 text, as the rest is: correct it, or see --encoding")


def strangeness(lines: bytes, encoding: str) -> int:
    """How many characters look out of place in an encoding: signs within words, capitals after small letters."""
    text = lines.decode(encoding, errors="replace")
    capitals = sum(one.islower() and other.isupper() and max(one, other) > "\x7f" for one, other in pairwise(text))
    triples = zip(text, text[1:], text[2:], strict=False)
    signs = sum(a.isalpha() and b > "\x7f" and not b.isalnum() and c.isalpha() for a, b, c in triples)
    return text.count("\ufffd") + capitals + signs


def unpacked(content: bytes) -> bytes:
    """The content of a gzip file.

    Raises:
        DataError: it is damaged, or too large.
    """
    try:
        with gzip.open(io.BytesIO(content)) as file:
            text = file.read(MAX_UNPACKED + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"is not a gzip file, or a damaged one ({error})") from None
    if len(text) > MAX_UNPACKED:
        raise DataError(f"unpacks to more than {MAX_UNPACKED // 2**30} GiB")
    return text
