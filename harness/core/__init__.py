"""The foundation of the other packages, free of torch: errors, data types, settings, the plug-in registry, files, text."""
