"""From scores to what a record says of them."""

from __future__ import annotations

import numpy as np

from service.data.domains import KINDS, MISSING
from service.journal.chain import JournalKey
from service.journal.contents import CERTAIN, RELIABLE, VALID, ScoresContent, each_row, little_endian
from service.scoring.reasons import NAMES, reason_codes
from service.scoring.scores import Scores


def scores_content(
    key: JournalKey, caller: str | None, model: tuple[str, str, str], scores: Scores, rows: np.ndarray, kept: np.ndarray
) -> tuple[ScoresContent, list[tuple[int, bytes]]]:
    """What a record says of scored rows, and the rows to keep as their places and bytes.

    Args:
        model: NAME@VERSION, digest, and digest of the input.
        rows: as they were read, shape (B, W).
        kept: which of them to keep, shape (B,), bool.
    """
    plain, each = little_endian(rows), each_row(rows)
    codes = reason_codes(scores)
    names = sorted(set(codes.tolist()) - {-1})
    rule = scores.rule
    flags = VALID * scores.valid + CERTAIN * scores.certain + RELIABLE * scores.reliable
    content = ScoresContent(
        key=caller,
        model=model[0],
        digest=model[1],
        input=model[2],
        rule={"name": "band", "percentiles": scores.band.percentiles}
        if rule is None
        else {"name": "combined", "false_alarm": rule.false_alarm},
        rows=len(scores),
        flags=flags.astype(np.uint8).tobytes(),
        reasons=[NAMES[code] for code in names],
        reason=np.where(codes < 0, 0, np.searchsorted(names, codes) + 1).astype(np.uint8).tobytes(),
        p_value=(scores.p_value if rule is None else scores.combined_p_value).astype("<f8").tobytes(),
        log_likelihood=scores.log_likelihood.astype("<f8").tobytes(),
        hashes=b"".join(map(key.hash, each)),
        dtype=plain.dtype.str,
        width=plain.shape[1],
        violations=violations_of(scores),
        kept=None if kept.all() else np.flatnonzero(kept).tolist(),
    )
    return content, [(at, each[at]) for at in np.flatnonzero(kept).tolist()]


def violations_of(scores: Scores) -> list[tuple[int, str | None, str]]:
    """Row, column and kind of each violation, without what the cell holds."""
    if not scores.codes.size or not (scores.codes > MISSING).any():
        return []
    names = [
        *map(str, scores.spec.columns or range(scores.spec.features)),
        *(one.name for one in scores.domains.beside),
    ]
    rows, columns = np.nonzero(scores.codes > MISSING)
    return [
        (row, names[at], KINDS[code][0])
        for row, at, code in zip(rows.tolist(), columns.tolist(), scores.codes[rows, columns].tolist(), strict=True)
    ]
