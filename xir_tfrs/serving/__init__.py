"""Reading a bundle and asking it."""
