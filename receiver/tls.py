"""TLS as a client: certificates and keys from files, and their faults in words."""

import ssl
from pathlib import Path


def client_context(ca_file: Path | None, certificate_file: Path | None, key_file: Path | None) -> ssl.SSLContext:
    """A context that trusts `ca_file` (None: the system's authorities) and presents a certificate if one is given.

    Raises ValueError; the message names what the file should have been.
    """
    context = trusting(ca_file)
    if certificate_file is not None and key_file is not None:
        try:
            with key_file.open("rb"):
                context.load_cert_chain(certificate_file, key_file, _no_password)
        except ssl.SSLError:
            raise ValueError("a private key (PEM, without a password) that belongs to the certificate") from None
        except OSError as error:
            raise ValueError(f"a file that can be read: {error.strerror}") from None
    return context


def trusting(file: Path | None) -> ssl.SSLContext:
    """A context that trusts the certificates (PEM) in a file. Raises ValueError, as above."""
    try:
        return ssl.create_default_context(cafile=file)
    except ssl.SSLError:
        raise ValueError("a file of certificates (PEM)") from None
    except OSError as error:
        raise ValueError(f"a file that can be read: {error.strerror}") from None


def _no_password() -> str:
    """Without this OpenSSL would ask the terminal for a password, and a process without a terminal would hang."""
    return ""
