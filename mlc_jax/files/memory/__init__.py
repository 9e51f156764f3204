"""What people have in memory, as files of the same content."""
