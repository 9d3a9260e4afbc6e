"""mlm/checkpoint."""
