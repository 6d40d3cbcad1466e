"""Training: from rows to a model to publish."""
