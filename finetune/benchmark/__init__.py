"""finetune/benchmark."""
