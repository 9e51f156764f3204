"""From a run's description to its results: the loop, checkpoints, evaluation, the report."""
