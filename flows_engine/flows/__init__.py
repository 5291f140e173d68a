"""The flows that Prefect runs."""
