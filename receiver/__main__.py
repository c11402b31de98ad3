"""`python -m receiver` and `qod-receiver`."""

from receiver.cli import run


def main() -> None:
    """Run the command that the arguments name."""
    run()


if __name__ == "__main__":
    main()
