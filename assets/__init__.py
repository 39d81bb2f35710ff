"""Studies: one folder each, with its `defs.yaml` and the code that it names."""
