"""The suite's metrics as a module of the `evaluate` library; its script is loaded by `evaluate.load`, never by the suite."""
