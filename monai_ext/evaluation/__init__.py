"""What evaluate.json calls: one protocol for all methods."""
