"""The training of any task: step, loop, optimizers, checkpoints, reports."""
