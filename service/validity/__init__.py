"""Where a log p(x) stands among those of valid rows. Plain numbers, no torch."""
