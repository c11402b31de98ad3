"""Settings of the senders that may post; see `settings.py`."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, SecretStr, ValidationInfo, field_validator

from receiver.settings_fields import Section, SenderName, Sha256, text

HeaderName = Annotated[str, text(r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$", "the name of a header")]


class TokenSettings(Section):
    """A token that a sender presents, known only by its hash. Several may be valid at once, for rotation."""

    sender: SenderName = Field(description="Name of the sender that presents this token")
    sha256: Sha256 = Field(description="SHA-256 of the token, in hexadecimal")
    not_before: AwareDatetime | None = Field(default=None, description="Time from which it is valid")
    not_after: AwareDatetime | None = Field(default=None, description="Time until which it is valid")

    @field_validator("not_after")
    @classmethod
    def _after_not_before(cls, value: AwareDatetime | None, info: ValidationInfo) -> AwareDatetime | None:
        begin = info.data.get("not_before")
        if value is not None and begin is not None and value <= begin:
            raise ValueError("a time after not_before")
        return value


class JwtSettings(Section):
    """An authorization server whose JWTs are accepted (CAMARA's PRIVATE_KEY_JWT senders present such)."""

    issuer: str = Field(min_length=1, description="Required value of `iss`")
    audience: str | None = Field(
        default=None, min_length=1, description="Audience that `aud` must name; needed unless audience_optional"
    )
    audience_optional: bool = Field(
        default=False, validate_default=True, description="Accept tokens that leave `aud` out too"
    )
    jwks_url: Annotated[
        str,
        text(
            r"^(https://|http://(localhost|127\.0\.0\.1|\[::1\])[:/])\S+$",
            "an https URL (http on the loopback interface only)",
        ),
    ] = Field(description="URL of the server's keys (JWKS)")
    algorithms: tuple[
        Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"], ...
    ] = Field(default=("RS256", "ES256"), min_length=1, description="Signature algorithms accepted")
    sender: SenderName | None = Field(
        default=None, description="Name of every sender with such a token; by default the value of sender_claim"
    )
    sender_claim: str = Field(default="sub", min_length=1, description="Claim that has the sender's name")
    sender_prefix: Annotated[
        str, text(r"^([A-Za-z0-9][A-Za-z0-9._@:+/-]{0,63})?$", "up to 64 letters, digits and ._@:+/-")
    ] = Field(default="", description="Text before that claim's value, so that no other issuer can give the same name")
    leeway_seconds: float = Field(default=30, ge=0, le=300, description="Tolerated difference between clocks")
    refresh_min_seconds: float = Field(
        default=30, ge=1, le=3600, description="Least time between two fetches for an unknown key id"
    )
    refresh_max_seconds: float = Field(default=3600, ge=60, le=86_400, description="Age at which keys are fetched anew")
    fetch_timeout_seconds: float = Field(default=5, ge=0.1, le=60, description="Time to fetch the keys")

    @field_validator("audience_optional")
    @classmethod
    def _for_us(cls, value: bool, info: ValidationInfo) -> bool:
        if not value and info.data.get("audience", "") is None:
            raise ValueError("true where there is no audience, since tokens for any audience are then accepted")
        return value


class AuthSettings(Section):
    """The senders that may post, and their tokens."""

    anonymous: bool = Field(
        default=False, description="Accept notifications without a token, from the sender `anonymous`"
    )
    tokens: tuple[TokenSettings, ...] = Field(default=(), description="Tokens of senders")
    jwt: tuple[JwtSettings, ...] = Field(default=(), description="Authorization servers of senders")
    headers: tuple[HeaderName, ...] = Field(
        default=(), description="More headers that may hold the token, where a gateway puts its own in Authorization"
    )
    mint_secret: SecretStr | None = Field(
        default=None,
        min_length=32,
        description="Secret that signs minted tokens; by default in the file token-secret in the data directory",
    )

    @field_validator("tokens")
    @classmethod
    def _each_once(cls, value: tuple[TokenSettings, ...]) -> tuple[TokenSettings, ...]:
        if len({token.sha256 for token in value}) < len(value):
            raise ValueError("each token once: two have the same sha256")
        return value

    @field_validator("jwt")
    @classmethod
    def _each_its_own_names(cls, value: tuple[JwtSettings, ...]) -> tuple[JwtSettings, ...]:
        if len({each.issuer for each in value}) < len(value):
            raise ValueError("each issuer once: two are the same")
        prefixes = [each.sender_prefix for each in value if each.sender is None]
        if len(set(prefixes)) < len(prefixes):
            raise ValueError(
                "a sender, or a sender_prefix of its own, for each issuer but one: "
                "else two of them could give the same sender's name"
            )
        return value
