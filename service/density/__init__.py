"""Importance-sampling estimates of log p(x), and their diagnostics."""
