"""Building blocks of settings: the base class of all sections, and the types that several sections use."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork, StringConstraints, WithJsonSchema

from receiver.core.notification import SENDER_NAME


def text(pattern: str, allowed: str) -> Any:  # noqa: ANN401  # what Field returns
    """A text field; `allowed` states its pattern in words."""
    return Field(pattern=pattern, json_schema_extra={"allowed": allowed})


class Section(BaseModel):
    """A section of the settings: frozen, without unknown names, and never printed with its values."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


Address = Annotated[
    IPvAnyNetwork, WithJsonSchema({"type": "string", "allowed": "an address or a network, such as 10.0.0.0/8"})
]
SenderName = Annotated[str, text(f"^{SENDER_NAME}$", "1 to 64 letters, digits, dots, hyphens and underscores")]
Sha256 = Annotated[
    str, StringConstraints(to_lower=True), text(r"^[0-9a-fA-F]{64}$", "the SHA-256 of a token: 64 hexadecimal digits")
]
