"""Where prompts and documents come from: files, tables, named data sets, the hub."""
