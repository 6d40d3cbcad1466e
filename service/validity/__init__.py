"""Where a log p(x) stands among those of valid rows. Plain numbers, no torch."""

from service.validity.band import Band, Side, Verdict
from service.validity.conformal import Places

__all__ = ["Band", "Places", "Side", "Verdict"]
