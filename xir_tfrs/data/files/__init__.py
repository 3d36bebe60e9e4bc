"""Files of other programs: delimited text, Parquet, side tables."""
