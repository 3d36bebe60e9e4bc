"""What lies on disk, defined once: schema, records, runs, files."""
