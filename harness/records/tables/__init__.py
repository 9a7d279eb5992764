"""A study kept as four Parquet tables: their columns, writing them, reading them back value for value."""
