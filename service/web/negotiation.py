"""Which of the offered types of an answer a client prefers (RFC 9110, section 12.5)."""

from __future__ import annotations

from collections.abc import Sequence

from service.errors import NotAcceptableError


def negotiate(accept: str, offered: Sequence[str]) -> str:
    """The offered type that the Accept header prefers; the first one if it has no preference.

    Raises:
        NotAcceptableError: it accepts none of them.
    """
    if not accept.strip():
        return offered[0]
    ranges = [parsed_range(part) for part in accept.split(",")]
    weights = {kind: weight(kind, ranges) for kind in offered}
    best = max(offered, key=lambda kind: weights[kind])
    if weights[best] <= 0:
        raise NotAcceptableError(f"no acceptable answer type; send an Accept header with one of: {', '.join(offered)}")
    return best


def parsed_range(part: str) -> tuple[str, float]:
    """The type and the q value of one range in an Accept header."""
    kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = next((piece[2:] for piece in parameters if piece.startswith("q=")), "1")
    try:
        value = float(quality)
    except ValueError:
        value = 0.0
    return kind, value if 0 <= value <= 1 else 0.0


def weight(kind: str, ranges: Sequence[tuple[str, float]]) -> float:
    """The q value of a type: that of the most specific range that matches it, 0 if none does."""
    for pattern in (kind, f"{kind.partition('/')[0]}/*", "*/*", "*"):
        matching = [quality for wanted, quality in ranges if wanted == pattern]
        if matching:
            return max(matching)
    return 0.0
