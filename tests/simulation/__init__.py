"""The embedded node as a whole, on a clock, a scheduler and a disk that follow from a seed.

`loop.py` is time and order, `disk.py` what survives a crash, `senders.py` who posts, `world.py` one seed from its first
life to its last, `oracle.py` what must have come of it, and `checks.py` the comparison.
"""
