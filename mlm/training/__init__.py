"""mlm/training."""
