"""What bodies become: batches of checked rows, within budgets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.errors import TooLargeError
from service.system.cancellation import CheckCancelled, never_cancelled

MAX_PIXELS = 4_000_000  # of an encoded image


def unlimited(size: int) -> None:
    """The default `hold`: memory is not counted."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Budgets of a body.

    Attributes:
        check: called every few milliseconds of work; raises to end it.
        hold: called with the bytes of what is kept; raises if there is no room for it.
    """

    max_rows: int
    max_pixels: int = MAX_PIXELS
    check: CheckCancelled = never_cancelled
    hold: Callable[[int], None] = unlimited


@dataclass(frozen=True, slots=True)
class Batch:
    """Checked rows, shape (B, D + C), with their ids and warnings; `lines` (B,) are those of a CSV body, from 1."""

    rows: np.ndarray
    ids: list[Any] | None = None
    warnings: tuple[str, ...] = ()
    lines: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)


def check_row_count(rows: int, max_rows: int) -> None:
    """Raise if there are more rows than the deployment accepts."""
    if rows > max_rows:
        raise TooLargeError(f"the request has {rows:,} rows, at most {max_rows:,} are accepted")
