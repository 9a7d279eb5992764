"""Studies as Parquet tables: columns, writing, and lossless reading."""
