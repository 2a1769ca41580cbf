"""What train.json calls: the trainer, what it minimises, what it is trained on, checkpoints, and the record of a
run.
"""
