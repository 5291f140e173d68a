"""Thin task wrappers: retries, names, logging; the work is done elsewhere."""
