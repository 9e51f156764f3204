"""Training: a run's description, the loop, devices and stacks of runs, evaluation."""
