"""The tests. They mirror the rooms; CONTRIBUTING.md says what goes where."""
