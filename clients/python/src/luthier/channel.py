"""How a server is dialled: the variables of the environment are those of the program `luthier`."""

from __future__ import annotations

import dataclasses
import os
import pathlib

import grpc

DEFAULT_SERVER = "127.0.0.1:7070"

# As in client/lib/client.cc.
CHANNEL_OPTIONS: list[tuple[str, int]] = [
    # A dead connection is noticed within a minute, also while a watch is silent.
    ("grpc.keepalive_time_ms", 30000),
    ("grpc.keepalive_timeout_ms", 20000),
    ("grpc.http2.max_pings_without_data", 0),
    # gRPC's own pauses between dials (1 s to 2 min) would hide that a server is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # An error that lists twenty violations is longer than the 8 KiB that gRPC takes as a status.
    ("grpc.max_metadata_size", 256 << 10),
    # A page of a thousand jobs is longer than the 4 MiB that gRPC takes as a message.
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclasses.dataclass(frozen=True)
class Tls:
    """PEM: the authority that signed the server's certificate, and a certificate of one's own if the server asks."""

    ca: bytes
    certificate: bytes | None = None
    key: bytes | None = None

    def __post_init__(self) -> None:
        """Refuses what gRPC says nothing of but that no server answers."""
        for field, pem in (("ca", self.ca), ("certificate", self.certificate), ("key", self.key)):
            if pem is not None and not _holds_pem(pem):
                raise ValueError(f"tls.{field}: holds no PEM block; give what is in the file")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("tls: certificate and key belong together; give both")

    @staticmethod
    def from_environment() -> Tls | None:
        ca, certificate, key = (_read_pem(f"LUTHIER_TLS_{name}") for name in ("CA", "CERT", "KEY"))
        if (certificate is None) != (key is None):
            raise ValueError("LUTHIER_TLS_CERT and LUTHIER_TLS_KEY belong together; set both")
        if ca is None and certificate is not None:
            raise ValueError("LUTHIER_TLS_CERT: is given without LUTHIER_TLS_CA; set that, too")
        return None if ca is None else Tls(ca, certificate, key)

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)


def server_from_environment() -> str:
    if server := os.environ.get("LUTHIER_SERVER"):
        return server
    if context := os.environ.get("LUTHIER_CONTEXT"):
        raise ValueError(f"LUTHIER_CONTEXT: '{context}' stands in a file that only `luthier` reads; set LUTHIER_SERVER")
    return DEFAULT_SERVER


def checked_server(server: str) -> str:
    """Refuses what gRPC would look for elsewhere or nowhere: a URL, and a host without a port."""
    if server.startswith(("http://", "https://")):
        raise ValueError(f"server: '{server}' is a URL; give HOST:PORT, such as {server.split('/')[2]}")
    if ":" not in server:
        raise ValueError(f"server: '{server}' names no port; give HOST:PORT, such as {server}:7070")
    port = server.rpartition(":")[2]
    is_socket = server.startswith("unix")  # of this machine, with a path
    if not is_socket and not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError(f"server: '{server}' does not end with a port; give HOST:PORT with one from 1 to 65535")
    return server


def token_from_environment() -> str:
    """Empty: none."""
    if token := checked_token(os.environ.get("LUTHIER_TOKEN", ""), "LUTHIER_TOKEN"):
        return token
    content = _read("LUTHIER_TOKEN_FILE")
    if content is None:
        return ""
    if not content.split():
        raise ValueError(f"LUTHIER_TOKEN_FILE: {os.environ['LUTHIER_TOKEN_FILE']} holds no token")
    return checked_token(content.split()[0].decode(errors="replace"), "LUTHIER_TOKEN_FILE")


def checked_token(token: str, given_by: str) -> str:
    """Without the blanks and the end of line that come along when it is copied. gRPC says nothing useful of a header that
    holds anything else."""
    token = token.strip()
    if not all("!" <= character <= "~" for character in token):
        raise ValueError(
            f"{given_by}: holds characters that no token has; copy it again as `luthier admin token create` printed it"
        )
    return token


def _read(variable: str) -> bytes | None:
    path = os.environ.get(variable)
    if not path:
        return None
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{variable}: {path} cannot be read: {error.strerror}") from error


def _holds_pem(content: bytes) -> bool:  # gRPC would say so on stderr only
    return b"-----BEGIN " in content


def _read_pem(variable: str) -> bytes | None:
    content = _read(variable)
    if content is not None and not _holds_pem(content):
        raise ValueError(f"{variable}: {os.environ[variable]} holds no PEM block")
    return content
