"""What happens until a flow run exists: receive, store, fingerprint, match, trigger."""
