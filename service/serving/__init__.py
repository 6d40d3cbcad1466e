"""What a running service holds, without HTTP."""
