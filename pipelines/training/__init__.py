"""Training: settings, model, loop, checkpoints."""
