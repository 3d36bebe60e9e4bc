"""The parts of the reference server, `python -m export.serve`."""
