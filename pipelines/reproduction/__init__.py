"""The grids of runs of `pipelines.reproduce`, and their reports."""
