"""Measurements, side by side with a peer in one run. They print ratios; nothing here asserts a time."""
