"""Thin wrappers around the operating system: files, CPUs, child processes."""
