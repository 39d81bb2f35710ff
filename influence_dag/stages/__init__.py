"""One module an artifact: `refresh(bench, …)` plans, streams and publishes; no Dagster."""
