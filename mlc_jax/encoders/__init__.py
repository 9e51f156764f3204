"""From texts as a user has them to what a classifier reads."""
