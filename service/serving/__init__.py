"""The parts of a running service that do not depend on HTTP."""
