"""tokenizer/shards."""
