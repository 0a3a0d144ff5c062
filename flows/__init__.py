"""One flow per deployment of prefect.yaml."""
