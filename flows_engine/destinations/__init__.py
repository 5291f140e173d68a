"""Where results can be sent: one file a kind."""
