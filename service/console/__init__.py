"""The console's files, and reports made of the same parts."""
