"""All that knows ranks and devices.

Here: the processes of a run and their collectives, how a model is wrapped or sharded, precision, threads.
Not here: what is trained or when it is saved.
"""
