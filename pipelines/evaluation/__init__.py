"""Ranks a split with a trained model."""
