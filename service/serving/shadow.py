"""A second version that scores a share of the traffic, to see where it disagrees. It never changes an answer.

Its work runs only when nothing else waits; requests that would pile up are skipped.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np

from service.errors import VouchError
from service.scoring.options import ScoreOptions
from service.scoring.scorer import Scorer
from service.scoring.scores import Scores
from service.serving.metrics import Metrics

MAX_RUNNING = 8  # requests
log = logging.getLogger("vouch")


@dataclass
class Shadow:
    """Compares the version NAME@ALIAS with the served version of NAME, on a share of the requests.

    Attributes:
        load: returns the scorer of a reference.
        score: scores rows with a scorer, when nothing else waits.
    """

    reference: str
    share: float
    metrics: Metrics
    load: Callable[[str], Awaitable[Scorer]]
    score: Callable[[Scorer, np.ndarray, ScoreOptions], Awaitable[Scores]]
    draw: random.Random = field(default_factory=random.Random)
    running: set[asyncio.Task[None]] = field(default_factory=set)

    def compare(self, served: Scorer, rows: np.ndarray, scores: Scores) -> None:
        """Schedule a second scoring of rows that were just scored, for a random share of the requests."""
        name = self.reference.partition("@")[0]
        if served.published.reference.name != name or self.draw.random() >= self.share:
            return
        if len(self.running) >= MAX_RUNNING:
            self.metrics.shadow_skipped.inc()
            return
        task = asyncio.ensure_future(self.score_again(served, rows, scores))
        self.running.add(task)
        task.add_done_callback(self.running.discard)

    async def score_again(self, served: Scorer, rows: np.ndarray, scores: Scores) -> None:
        """Score the rows with the second version and count where its verdicts differ."""
        try:
            scorer = await self.load(self.reference)
            if scorer is served:
                return
            cells = rows[:, : served.model.input.features]  # without what stands beside the served version's input
            other = await self.score(scorer, cells, ScoreOptions(percentiles=scores.band.percentiles))
        except VouchError as error:
            self.metrics.shadow_skipped.inc()
            log.warning("the shadow could not score", extra={"model": self.reference, "error": str(error)})
            return
        differ = int(((scores.sides == 0) != (other.sides == 0)).sum())
        labels = (str(served.published.reference), str(scorer.published.reference))
        self.metrics.shadow_rows.labels(*labels, "same").inc(len(scores) - differ)
        self.metrics.shadow_rows.labels(*labels, "different").inc(differ)
        self.metrics.shadow_gap.observe(labels, np.abs(scores.percentile - other.percentile))
