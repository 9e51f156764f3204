"""A user's files: tables, arrays, texts and pictures, with their labels."""
