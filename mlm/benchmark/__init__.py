"""mlm/benchmark."""
