"""Encoded pictures -> pixels, by Pillow."""
