"""A run's directory: checkpoints, its lock, and saving at SIGTERM."""
