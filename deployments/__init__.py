"""How DicomFlow is put on machines: the command line, Prefect's deployments, the services of one host."""
