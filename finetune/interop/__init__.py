"""The way out of fine-tuned models: to ONNX, and to transformers.

Here: one file a format with the same functions, their comparison with our model, and the model card.
Not here: pretrained encoders and their masked-language-model heads, which are in `mlm/interop`.
"""
