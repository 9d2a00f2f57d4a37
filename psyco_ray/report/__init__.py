"""What a finished run leaves to read."""
