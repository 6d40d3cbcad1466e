"""Options shared by several commands: single ones, and dataclasses whose fields typer turns into options."""

from __future__ import annotations

import csv
import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

import typer

from service.errors import DataError

if TYPE_CHECKING:
    from service.data.detect import Detection
    from service.data.image_reading import Mode
    from service.files.dialect import TextOptions
    from service.files.image_folders import ImageOptions as FolderOptions
    from service.scoring.options import ScoreOptions

T = TypeVar("T")
DeviceName = Literal["auto", "cpu", "cuda"]
MOST_SIDE = 2_048  # pixels of an image that a model reads

StoreOption = Annotated[
    str, typer.Option("--store", envvar="VOUCH_STORE", help="the model store: a folder, or an fsspec URL")
]
DeviceOption = Annotated[DeviceName, typer.Option("--device", envvar="VOUCH_DEVICE", help="where the network runs")]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="NAME, NAME@VERSION or NAME@ALIAS; default: the store's default model")
]
FalseAlarmOption = Annotated[
    float | None,
    typer.Option("--false-alarm", help="instead of --percentiles: the share of valid rows to refuse, such as 0.01"),
]
TailOption = Annotated[
    Literal["low", "both"] | None,
    typer.Option("--tail", help="low: refuse only unlikely rows; both: also rows that are too likely"),
]
KeyOption = Annotated[str | None, typer.Option("--key", help="name of the array in an .npz file")]
ColumnsOption = Annotated[str | None, typer.Option("--columns", help="columns of a table to use: a,b,c")]
TrainedRowsOption = Annotated[
    Literal["refuse", "allow"],
    typer.Option(
        "--trained-rows", help="whether rows that the network was trained on are refused, or used all the same"
    ),
]
FILES = (
    "a table (.csv, .tsv, .txt, .jsonl and their .gz, .parquet or a folder of it), .npz, .npy, idx (.gz), an image, or a "
    "folder of images"
)
DataArgument = Annotated[Path, typer.Argument(help=FILES)]


def takes_options(command: Callable[..., T]) -> Callable[..., T]:
    """Let typer build a command's dataclass parameters: each field is an option, declared once in the dataclass."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    parameters = []
    for parameter in inspect.signature(command).parameters.values():
        kind = groups.get(parameter.name)
        if kind is None:
            parameters.append(parameter.replace(annotation=hints[parameter.name], kind=parameter.KEYWORD_ONLY))
            continue
        types = get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(field.name, parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name])
            for field in dataclasses.fields(kind)
        ]

    @functools.wraps(command)
    def built(**values: Any) -> T:
        for name, kind in groups.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in dataclasses.fields(kind)})
        return command(**values)

    built.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    built.__annotations__ = {one.name: one.annotation for one in parameters}
    del built.__wrapped__  # inspect would follow it back to the dataclasses
    return built


@dataclass(frozen=True)
class TextFileOptions:
    """Options that say how a file of text is written, where it does not show."""

    sep: Annotated[str | None, typer.Option("--sep", help="what separates cells, such as ';' or tab")] = None
    decimal: Annotated[Literal[".", ","] | None, typer.Option("--decimal", help="the decimal mark")] = None
    encoding: Annotated[str | None, typer.Option("--encoding", help="such as utf-8 or cp1252")] = None
    header: Annotated[
        bool | None, typer.Option("--header/--no-header", help="whether the first line names the columns")
    ] = None
    on_bad_row: Annotated[
        Literal["stop", "skip"],
        typer.Option(
            "--on-bad-row", help="stop at lines that are not divided as the header is, with a list, or pass over them"
        ),
    ] = "stop"

    def text_options(self) -> TextOptions:
        from service.files.dialect import TextOptions

        return TextOptions(self.sep, self.decimal, self.encoding, self.header, self.on_bad_row)


@dataclass(frozen=True)
class TableOptions(TextFileOptions):
    """Options that say how a table to train on is read."""

    na_values: Annotated[
        str | None, typer.Option("--na-values", help="further texts that mean a missing cell: -999,n/v")
    ] = None
    bad_cells: Annotated[
        Literal["stop", "missing", "category"],
        typer.Option(
            "--bad-cells",
            help="what becomes of a cell that is no number in a column of numbers: stop; missing; or category, which makes "
            "its column one of categories",
        ),
    ] = "stop"
    keep: Annotated[
        str | None, typer.Option("--keep", help="columns not to leave out, whatever they look like: a,b")
    ] = None

    def detection(self) -> Detection:
        from service.data.detect import Detection

        return Detection(tuple(split_names(self.na_values) or ()), self.decimal, self.bad_cells)

    def kept(self) -> list[str]:
        return split_names(self.keep) or []


@dataclass(frozen=True)
class RepeatOptions:
    """Options that say which rows are not a draw of their own."""

    repeats: Annotated[
        Literal["auto", "copies", "natural"],
        typer.Option(
            "--repeats",
            help="rows that repeat another: copies are kept on one side of each split, and one of each calibrates; natural "
            "ones count as they come; auto: copies if they agree in a number too fine for chance",
        ),
    ] = "auto"
    group: Annotated[
        str | None,
        typer.Option("--group", help="column that says which rows belong together: one of each group calibrates"),
    ] = None


@dataclass(frozen=True)
class RuleOptions:
    """Options that choose the rule by which rows are judged."""

    percentiles: Annotated[
        str | None,
        typer.Option(
            help="percentiles of valid rows at the ends of the band, such as 1,99; default: the model's (new: 25,75)"
        ),
    ] = None
    false_alarm: FalseAlarmOption = None
    tail: TailOption = None

    rule: Annotated[
        Literal["band", "combined"] | None,
        typer.Option(
            help="band: judge by log p(x); combined: by several test statistics, at a promised rate of false alarms; "
            "default: the model's (new: band)"
        ),
    ] = None

    def options(self) -> ScoreOptions:
        """The rule, as far as it is named.

        Raises:
            InputError: the options contradict each other.
        """
        from service.scoring.options import ScoreOptions, parse_percentiles

        percentiles = None if self.percentiles is None else parse_percentiles(self.percentiles)
        return ScoreOptions(self.rule, percentiles, self.false_alarm, self.tail)


@dataclass(frozen=True)
class JudgeOptions(RuleOptions):
    """Options that choose how rows are judged, and what else is told of them."""

    fdr: Annotated[
        float | None,
        typer.Option(help="mark discoveries: at most this share of them is valid, in expectation, such as 0.05"),
    ] = None
    explain: Annotated[int, typer.Option(min=0, help="number of most suspicious columns to report for each row")] = 0
    strict: Annotated[
        bool, typer.Option("--strict", help="stop at a cell that cannot be read; by default its row is invalid")
    ] = False

    def score_options(self) -> ScoreOptions:
        return replace(self.options(), fdr=self.fdr, explain=self.explain, strict=self.strict)


@dataclass(frozen=True)
class ImageOptions:
    """Options that say what is read of images."""

    size: Annotated[
        str | None,
        typer.Option(help="width and height that all images become: 64, or 64x48; default: theirs, if equal"),
    ] = None
    fit: Annotated[
        Literal["crop", "pad", "stretch"] | None,
        typer.Option(
            help="how images of other sizes become this one; default with --size: crop; else they are refused"
        ),
    ] = None
    colour: Annotated[
        bool | None, typer.Option("--colour/--grey", help="read colours, or grey levels; default: what the files are")
    ] = None
    background: Annotated[
        str, typer.Option(help="red,green,blue behind transparent pixels and around padded images")
    ] = "0,0,0"
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="pass over images that cannot be read, and list them")
    ] = False

    def image_options(self) -> FolderOptions:
        """The options, for reading a folder.

        Raises:
            DataError: a size or a colour that is none.
        """
        from service.data.image_reading import ImageReading
        from service.files.image_folders import ImageOptions as FolderOptions

        size = None if self.size is None else size_of(self.size)
        mode: Mode | None = None if self.colour is None else "colour" if self.colour else "grey"
        fit = self.fit or ("exact" if size is None else "crop")
        return FolderOptions(size, mode, ImageReading(fit=fit, background=colour_of(self.background)), self.skip_bad)


def size_of(text: str) -> tuple[int, int]:
    """Height and width from `64`, for both, or from `WIDTHxHEIGHT`.

    Raises:
        DataError: the text is no such size.
    """
    found = re.fullmatch(r"(\d{1,4})(?:x(\d{1,4}))?", text.strip().lower())
    width, height = (0, 0) if found is None else (int(found[1]), int(found[2] or found[1]))
    if not 1 <= width <= MOST_SIDE or not 1 <= height <= MOST_SIDE:
        raise DataError(
            f"--size {text}: expected a number, or WIDTHxHEIGHT, from 1 to {MOST_SIDE:,}, such as 64 or 64x48"
        )
    return height, width


def colour_of(text: str) -> tuple[int, int, int]:
    """Red, green and blue from `0,0,0`.

    Raises:
        DataError: the text is no such colour.
    """
    parts = [int(part) for part in text.split(",") if re.fullmatch(r"\s*[0-9]{1,3}\s*", part)]
    if text.count(",") != 2 or len(parts) != 3 or max(parts) > 255:
        raise DataError(f"--background {text}: expected three numbers from 0 to 255, such as 255,255,255")
    return parts[0], parts[1], parts[2]


def split_names(columns: str | None) -> list[str] | None:
    """The names in a list; one that contains a comma is in quotes, as in CSV."""
    if columns is None:
        return None
    names = [name.strip() for name in next(csv.reader([columns], skipinitialspace=True), [])]
    if len(set(names)) < len(names):
        raise DataError(f"a column is named twice in {columns!r}")
    return names


def widths(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(width) for width in text.split(",") if width.strip())
    except ValueError:
        numbers = (0,)
    if any(not 1 <= width <= 100_000 for width in numbers):
        raise DataError("--hidden: expected widths such as 400,400, each from 1 to 100000")
    return numbers


def part_of(text: str) -> tuple[int, int]:
    try:
        at, parts = (int(number) for number in text.split("/"))
    except ValueError:
        at, parts = 0, 0
    if not 0 <= at < parts:
        raise DataError("--shard: expected i/N with i from 0 to N - 1, such as 0/8")
    return at, parts


def named_file(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not (separator and name.strip() and path.strip()):
        raise DataError("--invalid: expected NAME=FILE")
    return name.strip(), Path(path.strip())
