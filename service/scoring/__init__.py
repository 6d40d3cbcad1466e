"""From a model and rows to scores, verdicts and attributions."""
