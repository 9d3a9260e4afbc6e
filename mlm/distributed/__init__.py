"""Everything that depends on ranks and devices.

Here: the processes of a run and their collectives, how a model is wrapped or sharded, precision, threads.
Not here: tasks, the loop, checkpoints.
"""
