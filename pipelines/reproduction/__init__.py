"""Behind `pipelines.reproduce`: grids of runs, and what is made of them."""
