"""What single values of a user's files mean."""
