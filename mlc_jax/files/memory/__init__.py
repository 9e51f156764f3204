"""A user's data in memory, treated as files of the same content."""
