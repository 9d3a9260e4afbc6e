"""mlm/objectives."""
