"""What the gateway hands to a flow run: the study on disk, and the request that names it."""
