"""The cost of a run, without training: measured here, and projected onto stated machines (`--dry-run`)."""
