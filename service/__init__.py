"""Vouch: a service that vouches for data.

>>> from service import load                                  # doctest: +SKIP
>>> scorer = load("mnist", store="model_store")               # doctest: +SKIP
>>> scorer.score(rows).verdict                                # doctest: +SKIP
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from service._version import __version__

if TYPE_CHECKING:
    from service.scoring.scorer import Scorer

__all__ = ["__version__", "load"]


def load(
    name: str, store: str | os.PathLike[str] = "model_store", device: str = "auto", threads: int | None = None
) -> Scorer:
    """Load a published model, ready to score: `NAME`, `NAME@VERSION` or `NAME@ALIAS`.

    Every file's hash is checked first.

    Raises:
        ModelNotFoundError: the store has no such model.
        DamagedModelError: one of its files is missing, truncated or altered.
    """
    from service.store.loading import load_scorer  # here, so that `import service` stays instant
    from service.store.store import Store

    return load_scorer(Store(store), name, device, threads)
