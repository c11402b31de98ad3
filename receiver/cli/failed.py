"""How a command says that it failed, beside the errors of what it uses."""


class Failed(Exception):
    """A command can't do what it was asked to; the message says why."""
