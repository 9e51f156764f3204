"""Pictures of a user's own: decoded by Pillow; which there are, and their labels."""
