"""Token shards: text becomes memory-mapped files of ids, once.

Here: the format, the resumable build and its worker processes, parts encoded on many machines, folders joined as one,
packed rows, and counts of neighbors.
Not here: how text is read (sources) or cleaned (cleaning), and anything that knows torch.
"""
