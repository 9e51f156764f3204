"""The meaning of single values in a user's files."""
