"""mlm/data."""
