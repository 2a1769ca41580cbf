"""Phantoms: people's anatomy, diseased and scanned by physics, for training on no patient's image."""
