"""What `pipelines.prepare` is made of, between the readers and the records."""
