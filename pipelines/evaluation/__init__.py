"""Ranking a split with a trained model."""
