"""mlm/distributed."""
