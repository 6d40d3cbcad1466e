"""Estimates of log p(x) by importance sampling, and what they are worth."""
