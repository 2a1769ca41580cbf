"""What evaluate.json calls: one protocol for all methods, its figures, perturbations' effects, and the run folder."""
