"""Cancelling work that has begun: whoever does it calls a function every few milliseconds, which raises to end it."""

from __future__ import annotations

from collections.abc import Callable

CheckCancelled = Callable[[], None]


def never_cancelled() -> None:
    """The default `CheckCancelled`: never raises."""
