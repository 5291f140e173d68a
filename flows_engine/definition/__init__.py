"""The form of a flow: what a site's YAML may say, how it is read, and the names Prefect knows it by."""
