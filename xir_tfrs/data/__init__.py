"""Files on disk: schema, records, tables, runs and input formats."""
