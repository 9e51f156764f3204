"""Maps a user's texts and pictures to a classifier's inputs."""
