"""A demonstration with real parts only: DCMTK sends a study and receives the result, and every byte is compared."""
