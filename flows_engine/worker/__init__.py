"""The Prefect worker type ``dicomflow``, which starts flow runs warm."""
