"""mlm/tracking."""
