"""Sources of prompts and documents: files, tables, named data sets, the hub."""
