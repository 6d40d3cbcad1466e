"""Where a log p(x) stands among those of valid rows. Plain numbers, no torch."""

from service.validity.band import Band, Side, Verdict
from service.validity.conformal import ScoreRanks

__all__ = ["Band", "ScoreRanks", "Side", "Verdict"]
