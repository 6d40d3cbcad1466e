"""Where a log p(x) stands among those of valid rows. Plain numbers, no torch."""

from service.validity.band import Band, Side, Verdict
from service.validity.conformal import percentile, two_sided_p_value

__all__ = ["Band", "Side", "Verdict", "percentile", "two_sided_p_value"]
