"""TLS: the certificate, which the master reads, and a bound on each handshake."""

import logging
import ssl
from typing import Any

import gevent
from gevent.ssl import SSLContext

from astralog.settings import PREFIX, InvalidSettings, Settings

log = logging.getLogger(__name__)

#: A client that takes longer to set TLS up loses its connection.
HANDSHAKE_SECONDS = 10.0


class TlsContext(SSLContext):  # type: ignore[misc]
    """A server's TLS context with a bound on the time that a client may take to shake hands."""

    def wrap_socket(self, sock: Any, *args: Any, **kwargs: Any) -> Any:
        """Shake hands; a client that does not ends its greenlet without a traceback."""
        sock.settimeout(HANDSHAKE_SECONDS)
        try:
            return super().wrap_socket(sock, *args, **kwargs)
        except OSError as error:
            log.debug("no TLS with a client: %s", error)
            raise gevent.GreenletExit from None


def read_certificate(settings: Settings) -> TlsContext | None:
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
    context = TlsContext(ssl.PROTOCOL_TLS_SERVER)
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
