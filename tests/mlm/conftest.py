from hypothesis import settings

# Examples are drawn from a fixed seed, so that every run of the tests is the same; the time of one proves nothing.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("repeatable")
