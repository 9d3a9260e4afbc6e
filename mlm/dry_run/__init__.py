"""What a run would cost, without training: measured here, and projected onto stated machines (`--dry-run`)."""
