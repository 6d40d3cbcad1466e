"""The HTTP service: the only floor that knows HTTP."""
