"""Random requests, each with its right answers and its expected records; see `tests/fuzz_requests.py`.

Nothing here uses the program: the expectations follow from how a request was made, by what README.md and
schemas/README.md promise. If the model shared code with the parser, the two would share mistakes.
"""
