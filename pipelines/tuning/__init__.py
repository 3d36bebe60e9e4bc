"""Searches for the best method and settings for some data."""
