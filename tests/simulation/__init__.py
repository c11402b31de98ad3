"""The whole embedded node on a clock, a scheduler and a disk that follow from a seed.

`loop.py` is time and order, `disk.py` what survives a crash, `senders.py` the posts, `world.py` one seed from its first
life to its last, `oracle.py` the expected results, and `checks.py` the comparison.
"""
