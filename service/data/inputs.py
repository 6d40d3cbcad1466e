"""A model's input: its shape and columns, and the conversion between its units and the network's.

Rows, shape (B, D), are in the units of the training data and of one precision, to which a row is cast before anything
else, so that it scores the same however it was sent. The network's units are those of its likelihood
(`vae/likelihoods.py`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from service.data.beside import Beside
from service.data.cells import USUAL, CellReader, Reading
from service.data.columns import CategoryColumn, LearntColumn, NumberColumn, bounded, plain
from service.data.image_reading import ImageReading, usual_images
from service.data.table import FLOAT32_MAX, IS_INFINITE, Table, is_unreadable
from service.errors import Fault, InputError, summary
from service.system.frozen import Frozen

CHANNELS = ("red", "green", "blue")


class Binary(Frozen):
    """Two-valued columns: x > threshold is 1. `low` and `high` are 0 and 1 in the data's units."""

    kind: Literal["binary"] = "binary"
    threshold: float
    low: float = 0.0
    high: float

    def encode(self, rows: np.ndarray) -> np.ndarray:
        return (rows > self.threshold).astype(np.float32)

    def decode(self, x: np.ndarray) -> np.ndarray:
        """0 and 1, or probabilities, to the data's units."""
        return self.low + (self.high - self.low) * x

    def log_abs_det_jacobian(self, rows: np.ndarray) -> np.ndarray:
        return np.zeros(rows.shape)


class Grey(Frozen):
    """Grey levels 0..255 to [0, 1]; fractions of a level are rounded."""

    kind: Literal["grey"] = "grey"

    def encode(self, rows: np.ndarray) -> np.ndarray:
        return (np.rint(rows) / np.float32(255.0)).astype(np.float32)

    def decode(self, x: np.ndarray) -> np.ndarray:
        return 255.0 * x

    def log_abs_det_jacobian(self, rows: np.ndarray) -> np.ndarray:
        return np.zeros(rows.shape)


class Standard(Frozen):
    """Continuous columns, centred and scaled to a standard deviation of 1 over the training rows."""

    kind: Literal["standard"] = "standard"
    center: tuple[float, ...]
    scale: tuple[float, ...]

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """(x - center) / scale, computed in float64; clipped, so that extreme values stay finite in float32."""
        standard = (rows.astype(np.float64) - np.array(self.center)) / np.array(self.scale)
        return np.clip(standard, -1e15, 1e15).astype(np.float32)

    def decode(self, x: np.ndarray) -> np.ndarray:
        return x * np.array(self.scale) + np.array(self.center)

    def log_abs_det_jacobian(self, rows: np.ndarray) -> np.ndarray:
        """-log(scale), which converts a standardised column's log density to the data's units: shape (B, D), nats."""
        return np.broadcast_to(-np.log(self.scale), rows.shape)


class Mixed(Frozen):
    """Columns of several kinds, each with what it learnt from the training rows; any cell may be missing (NaN)."""

    kind: Literal["mixed"] = "mixed"
    columns: tuple[LearntColumn, ...]

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Rows, shape (B, D), to network columns, (B, D'): one for each column, two for a number with atoms."""
        rows, ends = rows.astype(np.float64), np.cumsum(self.widths)
        x = np.empty((len(rows), ends[-1]), dtype=np.float32)
        for at, column in enumerate(self.columns):
            if not self.are_straight[at]:
                x[:, ends[at] - column.width : ends[at]] = column.encode(rows[:, at])
        values, (center, spread, _) = rows[:, self.are_straight], self.straight
        x[:, ends[self.are_straight] - 1] = bounded((values - center) / spread, values)
        return x

    def decode(self, x: np.ndarray) -> np.ndarray:
        """Network columns, shape (..., D'), to rows, (..., D)."""
        ends = np.cumsum(self.widths)
        parts = [
            column.decode(x[..., end - column.width : end]) for column, end in zip(self.columns, ends, strict=True)
        ]
        return np.stack(parts, axis=-1)

    def log_abs_det_jacobian(self, rows: np.ndarray) -> np.ndarray:
        """Log-determinant of the Jacobian by column, which converts log p(x_j) to the table's units: (B, D), nats.

        Masses stay as they are; a density is also multiplied by the column's resolution.
        """
        rows = rows.astype(np.float64)
        measure = np.empty(rows.shape)
        for at, column in enumerate(self.columns):
            if not self.are_straight[at]:
                measure[:, at] = column.log_abs_det_jacobian(rows[:, at])
        measure[:, self.are_straight] = np.where(np.isnan(rows[:, self.are_straight]), 0.0, self.straight[2])
        return measure

    @cached_property
    def are_straight(self) -> np.ndarray:
        """Which columns are numbers on a straight scale without atoms, shape (D,): all of them are encoded at once."""
        return np.array([isinstance(column, NumberColumn) and column.is_straight for column in self.columns])

    @cached_property
    def straight(self) -> np.ndarray:
        """Center, spread and log-determinant of the straight columns, shape (3, number of them)."""
        numbers = [one for one in self.columns if isinstance(one, NumberColumn) and one.is_straight]
        measures = [math.log(one.resolution) - math.log(one.spread) for one in numbers]
        return np.array([[one.center for one in numbers], [one.spread for one in numbers], measures])

    @property
    def widths(self) -> list[int]:
        return [column.width for column in self.columns]


Transform = Annotated[Binary | Grey | Standard | Mixed, Field(discriminator="kind")]


class InputSpec(Frozen):
    """A model's input: an image of shape (H, W), or (H, W, 3) with colours, or a row of a table with named columns.

    `precision` is that of rows until they are encoded. Tables need float64, or 100,000,001 would be 100,000,000; older
    versions have float32.
    """

    kind: Literal["image", "table"]
    shape: tuple[int, ...]
    columns: tuple[str, ...] | None = None
    transform: Transform
    precision: Literal["float32", "float64"] = "float32"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of rows."""
        return np.dtype(self.precision)

    def fingerprint_text(self) -> str:
        """The input as JSON, for hashes; unchanged for inputs from before there was a precision."""
        return self.model_dump_json(exclude={"precision"} if self.precision == "float32" else None)

    @property
    def features(self) -> int:
        return math.prod(self.shape)

    @property
    def reads_missing(self) -> bool:
        return isinstance(self.transform, Mixed)

    @property
    def has_text(self) -> bool:
        transform = self.transform
        return isinstance(transform, Mixed) and any(
            isinstance(column, CategoryColumn) and column.is_text for column in transform.columns
        )

    @property
    def widths(self) -> list[int]:
        """How many network columns each column takes."""
        return self.transform.widths if isinstance(self.transform, Mixed) else [1] * self.features

    def column(self, index: int) -> str | int:
        """A column's name, or its position if columns have no names."""
        return index if self.columns is None else self.columns[index]

    def pixel(self, index: int) -> tuple[int, int, str | None]:
        """An image's row and column that an index belongs to, and the channel if it has colours."""
        channels = self.shape[2] if len(self.shape) == 3 else 1
        row, column = divmod(index // channels, self.shape[1])
        return row, column, CHANNELS[index % channels] if channels > 1 else None

    def named(self, index: int) -> str:
        """A column in a sentence."""
        if self.kind != "image":
            return str(self.column(index))
        row, column, channel = self.pixel(index)
        return f"pixel {row}, {column}" + (f" in {channel}" if channel else "")

    def reader(
        self, reading: Reading = USUAL, beside: tuple[Beside, ...] = (), images: ImageReading | None = None
    ) -> CellReader:
        """A reader of cells for a model with this input, by the rules that its training file was read with.

        `beside` are columns that the network does not read, of which something is told all the same; `images` says how
        encoded images are read.
        """
        columns = self.transform.columns if isinstance(self.transform, Mixed) else None
        return CellReader(
            self.shape,
            self.columns,
            columns,
            self.kind == "table",
            reading,
            beside=beside,
            images=images or usual_images(self.shape),
        )

    def array(self, table: Table) -> np.ndarray:
        """The rows of a training table as numbers, shape (N, D), float64, still to be checked by `rows`.

        Raises:
            DataError: a column is absent, or a cell cannot be read.
        """
        return replace(self.reader(), is_strict=True).table(table)

    def rows(self, array: np.ndarray) -> np.ndarray:
        """Check external numbers of shape (B, D) or (B, *shape), and cast them to rows, shape (B, D).

        Raises:
            InputError: a wrong shape, NaN, infinity, a number that overflows float32, a pixel outside 0..255, a number
                that is no position of a text category.
        """
        if array.ndim == 1 + len(self.shape) and array.shape[1:] == self.shape:
            array = array.reshape(len(array), self.features)
        if array.ndim != 2 or array.shape[1] != self.features:
            raise InputError(f"the array has shape {shape_text(array.shape)}, the model reads {self.expected()}")
        if array.dtype.kind in "iu" and array.dtype.itemsize == 1:
            return self.in_range(array.astype(self.dtype))
        rows, finite = self.cast(array)
        if not finite.all():
            raise InputError("some values cannot be scored: expected finite numbers", self.faults(array, ~finite))
        return self.in_range(rows)

    def cast(self, array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """An array in the rows' precision, and which of its cells are finite in float32, or may be missing."""
        with np.errstate(over="ignore", invalid="ignore"):
            rows = array.astype(self.dtype)
            return rows, np.isfinite(rows.astype(np.float32)) | (np.isnan(rows) & self.reads_missing)

    def read(self, array: np.ndarray, reader: CellReader) -> np.ndarray:
        """Check what a reader has read, shape (B, D + C), like `rows`: (B, D + C).

        Unless the reader is strict, numbers that are not finite are cells that cannot be read, if the model's rows may
        have missing cells.
        """
        aside = len(reader.beside)
        if aside:
            return np.concatenate([self.read(array[:, :-aside], replace(reader, beside=())), array[:, -aside:]], axis=1)
        if array.dtype.kind == "f" and array.dtype.itemsize < np.dtype(np.float32).itemsize:
            array = array.astype(np.float32)  # a smaller NaN would not say that it stands for an unreadable cell
        if not reader.is_strict and self.reads_missing and array.dtype.kind == "f":
            finite = self.cast(array)[1]
            array = array if finite.all() else np.where(finite, array, IS_INFINITE)
        rows = self.rows(array)
        if reader.whole_but is not None:
            self.check_whole(rows, reader.whole_but)
        return rows

    def check_whole(self, rows: np.ndarray, but: str) -> None:
        """Raise if a row, (B, D), lacks a cell of another column than `but`; not for rows that cannot be judged at all.

        Raises:
            InputError: names rows and columns.
        """
        gaps = np.isnan(rows)
        is_judged = ~gaps.all(axis=1) & ~is_unreadable(rows).any(axis=1)
        gaps &= is_judged[:, None] & (np.array(self.columns or [""] * rows.shape[1]) != but)
        if gaps.any():
            expected = f"a value: the version is calibrated by groups of {but!r}, each too small for rows with gaps"
            places = np.argwhere(gaps)[: InputError.MAX_FAULTS].tolist()
            faults = [Fault("missing", row, self.column(at), expected) for row, at in places]
            raise InputError(summary(faults), faults)

    def in_range(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows; raise if a pixel is outside 0..255, or a text category has no such position."""
        if isinstance(self.transform, Mixed):
            self.check_positions(rows, self.transform)
        if self.kind == "image":
            outside = (rows < 0) | (rows > 255)
            if outside.any():
                faults = [
                    Fault("a pixel is outside 0..255", int(row), self.column(int(column)), "a number from 0 to 255")
                    for row, column in np.argwhere(outside)[: InputError.MAX_FAULTS]
                ]
                raise InputError("some pixels are out of range: expected 0 to 255", faults)
        return rows

    def check_positions(self, rows: np.ndarray, transform: Mixed) -> None:
        """Raise unless the cells of text categories are positions of a value; the count of values means any other."""
        for at, column in enumerate(transform.columns):
            if not (isinstance(column, CategoryColumn) and column.is_text):
                continue
            cells = rows[:, at]
            wrong = ~np.isnan(cells) & ~((cells == np.rint(cells)) & (cells >= 0) & (cells <= len(column.values)))
            if wrong.any():
                expected = f"a whole number from 0 to {len(column.values)}: the position of its value in the card"
                faults = [
                    Fault("not a category's position", int(row), column.name, expected) for row in np.flatnonzero(wrong)
                ]
                raise InputError(
                    "some categories have no such position: expected the position of the value in the card", faults
                )

    def faults(self, array: np.ndarray, wrong: np.ndarray) -> list[Fault]:
        """Why these values are not finite in float32, without repeating them."""
        found = []
        for row, column in np.argwhere(wrong)[: InputError.MAX_FAULTS]:
            value = float(array[row, column])
            message = (
                "not a number"
                if np.isnan(value)
                else "infinity"
                if np.isinf(value)
                else "a number too large for float32"
            )
            found.append(Fault(message, int(row), self.column(int(column)), f"a number up to {FLOAT32_MAX:.4g}"))
        return found

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Rows in the data's units to the network's units, float32."""
        return self.transform.encode(rows)

    def decode(self, x: np.ndarray) -> np.ndarray:
        """The network's units back to the data's units."""
        return self.transform.decode(x)

    def cells(self, rows: np.ndarray) -> list[list[Any]]:
        """Generated rows, shape (B, D), for display: rounded numbers, text for text categories, None for missing cells."""
        if not isinstance(self.transform, Mixed):
            listed: list[list[Any]] = rows.tolist()
            return listed
        columns = [column.cells(self.rounded(at, rows[:, at])) for at, column in enumerate(self.transform.columns)]
        return [list(row) for row in zip(*columns, strict=True)]

    def rounded(self, column: int, values: np.ndarray) -> np.ndarray:
        """Generated values of a column with no more digits than the column has; in older versions, than float32 has."""
        if self.precision == "float32":
            return values.astype(np.float32)
        learnt = self.transform.columns[column] if isinstance(self.transform, Mixed) else None
        return learnt.rounded(values) if isinstance(learnt, NumberColumn) else values

    def cell(self, column: int, value: float) -> Any:
        """One cell for display."""
        if isinstance(self.transform, Mixed):
            return self.transform.columns[column].cells(np.array([value], self.dtype))[0]
        return plain(value) if self.kind == "image" else value

    def log_abs_det_jacobian(self, rows: np.ndarray) -> np.ndarray:
        """Log-determinant of the Jacobian by column, which converts log p(x_j) to the data's units: (B, D), nats."""
        return self.transform.log_abs_det_jacobian(rows)

    def bits_per_dimension(self, log_likelihood: float) -> float | None:
        """log p(x), nats, as bits for each pixel and channel, if these are 8-bit levels; a lossless code takes as many."""
        return -log_likelihood / (self.features * math.log(2.0)) if isinstance(self.transform, Grey) else None

    def by_column(self, values: np.ndarray) -> np.ndarray:
        """Sums over the network columns that belong to the same column: shape (..., D') to (..., D)."""
        starts = np.cumsum([0, *self.widths[:-1]])
        return values if len(starts) == values.shape[-1] else np.add.reduceat(values, starts, axis=-1)

    def expected(self) -> str:
        """The shape of a batch, in words."""
        flat = f"(rows, {self.features})"
        return flat if len(self.shape) == 1 else f"{flat} or (rows, {', '.join(map(str, self.shape))})"


def shape_text(shape: tuple[int, ...]) -> str:
    """(3, 784), and (3,) for one dimension."""
    return str(tuple(int(length) for length in shape))
