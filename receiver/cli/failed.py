"""The error of a command itself, beside the errors of the modules it uses."""


class Failed(Exception):
    """A command can't do what it was asked to do; the message says why."""
