"""Readers: each input kind as blocks of interactions with their places."""
