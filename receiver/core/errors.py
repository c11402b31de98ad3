"""Kinds of failure, divided by who must act. Pure.

    ReceiverError
    ├── Refused        the sender's fault: a 4xx with CAMARA's error body
    │   └── Malformed  an authenticated body that is not a notification: 400, 413 or 415, and kept as a dead letter
    ├── Unavailable    ours: 503 with Retry-After; nothing was kept
    │   └── Unwritable the same, but for this notification alone: the next one may be kept
    └── ApiRefused     ours, as a client: the operator's API refuses our request

The pure modules raise them with a hint of the answer; `edge/intake.py` alone turns them into answers. A success is
never raised. Senders read the messages, so they quote no token and no header value.
"""

from http import HTTPStatus


class ReceiverError(Exception):
    """Base of all failures: a message for the sender, and a `reason` under which it is counted (a metric label).

    `retry_after_seconds` is when the same request may succeed, None if it can't.
    """

    def __init__(self, message: str, *, reason: str, retry_after_seconds: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


class Refused(ReceiverError):
    """The request is at fault; posting it again unchanged fails again, unless `retry_after_seconds` says otherwise.

    `status` and `code` are those of CAMARA's ErrorInfo (Commonalities, CAMARA_common.yaml). `why` is a finer reason,
    for investigation. `sender` is the sender named by a token that is not valid; empty if there is none.
    """

    def __init__(
        self,
        status: HTTPStatus,
        code: str,
        message: str,
        *,
        reason: str,
        why: str = "",
        sender: str = "",
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message, reason=reason, retry_after_seconds=retry_after_seconds)
        self.status = status
        self.code = code
        self.why = why or reason
        self.sender = sender


class Malformed(Refused):
    """The body can't be read as a notification of any dialect."""

    def __init__(
        self,
        message: str,
        *,
        status: HTTPStatus = HTTPStatus.BAD_REQUEST,
        code: str = "INVALID_ARGUMENT",
        reason: str = "malformed",
    ) -> None:
        super().__init__(status, code, message, reason=reason)


class Unavailable(ReceiverError):
    """We could not keep the notification now; the same request may succeed after `retry_after_seconds`."""

    def __init__(self, message: str, *, reason: str, retry_after_seconds: int = 5) -> None:
        super().__init__(message, reason=reason, retry_after_seconds=retry_after_seconds)


class Unwritable(Unavailable):
    """The store refuses this notification; it accepts others."""


class ApiRefused(ReceiverError):
    """The operator's API refuses our request; repeating it unchanged can't help.

    `status` and `code` are the API's; the code is empty where it has none.
    """

    def __init__(self, status: int, code: str, message: str, *, reason: str = "api") -> None:
        super().__init__(message, reason=reason)
        self.status = status
        self.code = code
