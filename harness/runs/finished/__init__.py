"""What is done with the record of a finished run: its texts scored again, its policy probed."""
