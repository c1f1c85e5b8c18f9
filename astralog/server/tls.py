"""TLS: the certificate, which the master reads."""

import ssl
from typing import Any

from gevent.ssl import SSLContext

from astralog.settings import PREFIX, InvalidSettings, Settings


def read_certificate(settings: Settings) -> Any | None:
    """Return the context of the settings' certificate, None where they have none.

    Raises InvalidSettings where the certificate or its key is of no use.
    """
    if not settings.tls_cert:
        return None
    for name, path in (("TLS_CERT", settings.tls_cert), ("TLS_KEY", settings.tls_key)):
        try:
            open(path, "rb").close()
        except OSError as error:
            raise InvalidSettings([f"{PREFIX}{name}: {path}: {error.strerror}."]) from None
    context = SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Each renegotiation costs a handshake, without a bound on how many a client may ask for.
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=_no_password)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        problem = f"{PREFIX}TLS_CERT and {PREFIX}TLS_KEY: Not a certificate and its key: {reason}."
        raise InvalidSettings([problem]) from None
    return context


def _no_password() -> str:
    """Let a key that takes a password fail, where OpenSSL would ask for it on the terminal."""
    raise ValueError("the key is encrypted")
