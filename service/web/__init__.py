"""The HTTP service: the only layer that knows about HTTP."""
