"""Records of runs on disk: their schema, writer, readers and checks."""
