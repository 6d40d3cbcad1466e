"""Foreign data to rows: what a model's input looks like, and the files that hold it."""
