"""What runs leave on disk: schema, writer, readers, checks."""
