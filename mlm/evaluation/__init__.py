"""mlm/evaluation."""
