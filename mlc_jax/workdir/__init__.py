"""What a run keeps on disk: checkpoints, the lock that it holds, and what SIGTERM makes of it."""
