"""Records in, tables, figures and a page out; `build.build` is the way in, and nothing is imported before it is asked for."""
