"""A self-signed certificate for services that speak TLS."""

import shutil
import subprocess
from pathlib import Path


def can_make_certificate() -> bool:
    """Return whether openssl is installed."""
    return shutil.which("openssl") is not None


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """Make a certificate for localhost, and return it and its key."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    options = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    files = ["-keyout", str(key), "-out", str(cert)]
    subprocess.run([*command.split(), *options, *files], check=True, capture_output=True)
    return cert, key
