"""Turn text into ids and back: where text comes from, its cleaning, the byte-level vocabulary and the token shards.

It works without torch. Bottom up: `readers` and `documentation` read text, `sources` gives documents, `text` cleans
and splits them, `vocabulary` learns the byte-level BPE, `lookup` encodes, `workers` in other processes, `shards` is
the format on disk, `build` makes it, with `writer` and, for what a killed build left, `partial`; `prepare` reuses what
was built before; `train` and `encode` are the commands.
"""
