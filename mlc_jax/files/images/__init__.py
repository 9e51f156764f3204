"""A user's pictures: their files and labels, and decoding by Pillow."""
