"""A second version that scores a share of the traffic, to see where it disagrees. It touches no answer.

Its work waits until nothing else does; what would pile up is left out.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from service.errors import VouchError
from service.scoring.scorer import Scorer, Scores, joined

if TYPE_CHECKING:
    from service.web.context import Service

MAX_RUNNING = 8  # requests
log = logging.getLogger("vouch")


@dataclass
class Shadow:
    """The version NAME@ALIAS beside whatever the model NAME serves, on a share of its requests."""

    reference: str
    share: float
    draw: random.Random = field(default_factory=random.Random)
    running: set[asyncio.Task[None]] = field(default_factory=set)

    def compare(self, service: Service, served: Scorer, rows: np.ndarray, scores: Scores) -> None:
        """Have rows that were just scored scored again, later, if it is their turn."""
        name = self.reference.partition("@")[0]
        if served.published.reference.name != name or self.draw.random() >= self.share:
            return
        if len(self.running) >= MAX_RUNNING:
            service.metrics.shadow_skipped.inc()
            return
        task = asyncio.ensure_future(self.score(service, served, rows, scores))
        self.running.add(task)
        task.add_done_callback(self.running.discard)

    async def score(self, service: Service, served: Scorer, rows: np.ndarray, scores: Scores) -> None:
        """Score the rows with the second version and count where its verdicts differ."""
        try:
            scorer = await service.scorer(self.reference)
            if scorer is served:
                return
            percentiles = scores.band.percentiles
            task = service.row_task(
                scorer, lambda batch, go_on: scorer.score(batch, percentiles, go_on), (scorer, percentiles), shadow=True
            )
            job = service.inference.submit(task, scorer.rows(rows), service.settings.request_timeout_s)
            other = joined((await job.future).answers)
        except VouchError as error:
            service.metrics.shadow_skipped.inc()
            log.warning("the shadow did not score", extra={"model": self.reference, "error": str(error)})
            return
        differ = int(((scores.sides == 0) != (other.sides == 0)).sum())
        labels = (str(served.published.reference), str(scorer.published.reference))
        service.metrics.shadow_rows.labels(*labels, "same").inc(len(scores) - differ)
        service.metrics.shadow_rows.labels(*labels, "different").inc(differ)
        service.metrics.shadow_gap.observe(labels, np.abs(scores.percentile - other.percentile))
