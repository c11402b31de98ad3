"""`healthcheck.py PATH [PROCESSES]`: asks the operations ports of this container, and ends with 1 unless all say 200.

Processes that receive on one port (`--workers`) have operations ports that follow each other. The image has no curl.
"""
# ruff: noqa: INP001  # a script of the image, in no package

import http.client
import os
import sys

_SECONDS_MAX = 3


def told(port: int, path: str) -> tuple[bool, str]:
    """Whether all is well on a port, and what was said there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS_MAX)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status == http.client.OK, answer.read().decode().strip()
    except (OSError, http.client.HTTPException) as error:
        return False, str(error) or type(error).__name__
    finally:
        connection.close()


def main() -> None:
    """The program. Ends with SystemExit."""
    path, *rest = sys.argv[1:]
    first = int(os.environ.get("QOD_RECEIVER_OPS__PORT", "9464"))
    answers = {port: told(port, path) for port in range(first, first + int(*rest or ("1",)))}
    for port, (_, said) in answers.items():
        sys.stdout.write(f"{port} {said}\n")
    sys.exit(not all(well for well, _ in answers.values()))


if __name__ == "__main__":
    main()
