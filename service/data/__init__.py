"""From external data to rows: cells, columns, their scales, and a model's input."""
