"""Requests at random, each with what must be answered and what must come of it; see `tests/fuzz_requests.py`.

Nothing here knows the program: what is right follows from how a request was made, by what README.md and
schemas/README.md promise. If the model shared code with the parser, the two would share mistakes.
"""
