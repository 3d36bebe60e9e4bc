"""A training run: settings, model, loop, checkpoints."""
