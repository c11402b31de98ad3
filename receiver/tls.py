"""TLS as a client: certificates and keys from files, and in words what is wrong with them."""

import ssl
from pathlib import Path


def client_context(ca_file: Path | None, certificate_file: Path | None, key_file: Path | None) -> ssl.SSLContext:
    """A context that trusts `ca_file` (None: what the system trusts), and shows a certificate where one is given.

    Raises ValueError, with a word of what should have been there.
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
    """Else the terminal would be asked for it, and a process without one would wait for ever."""
    return ""
