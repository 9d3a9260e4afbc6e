"""Many runs, one question: a sweep is a folder of ordinary runs of one command, each in a process of its own.

Here: the settings of a sweep, its arms, the folder of its trials, and the launchers that run them.
Not here: training, and the packages of the swept commands, which only their own processes import.
"""
