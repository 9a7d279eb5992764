"""The claims of the papers as data, and the verdict on each from records of runs."""
