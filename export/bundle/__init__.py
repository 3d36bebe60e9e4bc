"""Writing a bundle and checking it."""
