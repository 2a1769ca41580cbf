"""What train.json calls."""
