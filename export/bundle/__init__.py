"""Writes and checks bundles."""
