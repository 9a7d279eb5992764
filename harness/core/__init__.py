"""What everything else stands on, and no torch: errors, the data types, settings, the registry of plug-ins, files, text."""
