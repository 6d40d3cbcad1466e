"""Loads a model of the store as a scorer."""

from __future__ import annotations

from service.scoring.scorer import Scorer, torch_device
from service.store.store import Store
from service.system.cpus import cpu_quota


def load_scorer(store: Store, name: str | None = None, device: str = "auto", threads: int | None = None) -> Scorer:
    """Load and verify a model of the store: NAME, NAME@VERSION, NAME@ALIAS, or None for the default.

    Args:
        threads: number of CPU threads that score rows in parallel; None: one for each CPU this process may use.
    """
    return Scorer(store.load(store.resolve(name)), torch_device(device), threads or cpu_quota())
