"""From scores to what a record says of them."""

from __future__ import annotations

import numpy as np

from service.data.domains import KINDS, MISSING
from service.journal.chain import JournalKey
from service.journal.contents import CERTAIN, RELIABLE, VALID, ScoresContent, bytes_of_each, little_endian
from service.scoring.reasons import NAMES, reason_codes
from service.scoring.scores import Scores


def scores_content(
    key: JournalKey,
    caller: str | None,
    model: tuple[str, str, str],
    scores: Scores,
    rows: np.ndarray,
    kept: np.ndarray,
    share: float,
    is_trial: bool = False,
) -> tuple[ScoresContent, list[tuple[int, bytes]]]:
    """What a record says of scored rows, and the rows to keep as their places and bytes.

    Args:
        model: NAME@VERSION, digest, and digest of the input.
        rows: as they were read, shape (B, W).
        kept: which of them to keep, shape (B,), bool, drawn with the probability `share`.
    """
    plain = little_endian(rows)
    each = bytes_of_each(plain)
    names, reason = reasons_of(scores)
    rule = scores.rule
    flags = VALID * scores.valid.view(np.uint8) + CERTAIN * scores.certain.view(np.uint8)
    content = ScoresContent(
        key=caller,
        model=model[0],
        digest=model[1],
        input=model[2],
        rule={"name": "band", "percentiles": scores.band.percentiles}
        if rule is None
        else {"name": "combined", "false_alarm": rule.false_alarm},
        rows=len(scores),
        flags=(flags + RELIABLE * scores.reliable.view(np.uint8)).tobytes(),
        reasons=names,
        reason=reason,
        p_value=(scores.p_value if rule is None else scores.combined_p_value).astype("<f8", copy=False).tobytes(),
        log_likelihood=scores.log_likelihood.astype("<f8", copy=False).tobytes(),
        hashes=b"".join(map(key.hash, each)),
        dtype=plain.dtype.str,
        width=plain.shape[1],
        violations=violations_of(scores),
        kept=None if kept.all() else np.flatnonzero(kept).tolist(),
        share=share,
        trial=is_trial,
    )
    return content, [(at, each[at]) for at in np.flatnonzero(kept).tolist()]


def reasons_of(scores: Scores) -> tuple[list[str], bytes]:
    """The names of the reasons that occur, and the place of each row's among them, from 1, or 0: B bytes."""
    if scores.valid.all():
        return [], bytes(len(scores))
    codes = reason_codes(scores).tolist()
    places = {code: place for place, code in enumerate(sorted(set(codes) - {-1}), start=1)}
    return [NAMES[code] for code in places], bytes(places.get(code, 0) for code in codes)


def violations_of(scores: Scores) -> list[tuple[int, str | None, str]]:
    """Row, column and kind of each violation, without what the cell holds."""
    if not scores.codes.size or not (scores.codes > MISSING).any():
        return []
    names = scores.domains.names(scores.spec)
    rows, columns = np.nonzero(scores.codes > MISSING)
    return [
        (row, names[at], KINDS[code][0])
        for row, at, code in zip(rows.tolist(), columns.tolist(), scores.codes[rows, columns].tolist(), strict=True)
    ]
