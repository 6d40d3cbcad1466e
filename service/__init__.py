"""Vouch: a service that vouches for data.

>>> from service import load                                  # doctest: +SKIP
>>> scorer = load("mnist", store="model_store")               # doctest: +SKIP
>>> scorer.score(rows).verdict                                # doctest: +SKIP
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.scoring.scorer import Scorer

try:
    __version__ = version("vouch")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0"


def load(
    name: str, store: str | os.PathLike[str] = "model_store", device: str = "auto", threads: int | None = None
) -> Scorer:
    """Load a published model, ready to score: `NAME`, `NAME@VERSION` or `NAME@ALIAS`.

    Every file's hash is checked first.

    Raises:
        ModelNotFoundError: the store has no such model.
        DamagedModelError: a file of it is missing, cut short or altered.
    """
    from service.scoring.scorer import load_scorer  # here, so that `import service` stays instant
    from service.store.store import Store

    return load_scorer(Store(store), name, device, threads)
