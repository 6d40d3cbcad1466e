"""From a model and rows to scores."""
