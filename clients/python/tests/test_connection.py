"""Tokens and certificates, given and from the environment."""

from __future__ import annotations

import pathlib
import subprocess

import luthier
import pytest
from conftest import BIN, Server
from luthier import Client, Tls
from luthier.v1.admin_pb2 import ROLE_ADMIN, CreateTokenRequest, ListTokensRequest, Token


def test_a_token_goes_with_every_call(
    server: Server, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(server.address) as nobody:
        request = CreateTokenRequest(token_id="root", token=Token(role=ROLE_ADMIN))
        secret = nobody.stubs.admin.CreateToken(request).secret
        with pytest.raises(luthier.Error, match="UNAUTHENTICATED"):
            nobody.list_jobs()
    with Client(server.address, token=secret) as root:
        assert root.list_jobs() == []
        tokens = root.stubs.admin.ListTokens(ListTokensRequest(), metadata=root.metadata).tokens
        assert [token.name for token in tokens] == ["tokens/root"]
    (tmp_path / "token").write_text(secret + "\n")
    monkeypatch.setenv("LUTHIER_SERVER", server.address)
    monkeypatch.setenv("LUTHIER_TOKEN_FILE", str(tmp_path / "token"))
    with Client() as root:
        assert root.list_jobs() == []
    monkeypatch.setenv("LUTHIER_TOKEN", f" {secret}\r\n")
    with Client() as root:
        assert root.list_jobs() == []


def test_what_can_be_no_token_is_refused_before_a_call(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="token: holds characters that no token has"):
        Client(token="…")
    (tmp_path / "token").write_bytes(b"\xff\xfe")
    monkeypatch.setenv("LUTHIER_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(ValueError, match="LUTHIER_TOKEN_FILE: holds characters"):
        Client()
    monkeypatch.setenv("LUTHIER_TOKEN", "a\nb")
    with pytest.raises(ValueError, match="LUTHIER_TOKEN: holds characters"):
        Client()


def test_a_server_that_gRPC_would_look_for_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="'gpu1' names no port; give HOST:PORT, such as gpu1:7070"):
        Client("gpu1")
    with pytest.raises(ValueError, match="is a URL; give HOST:PORT, such as gpu1:7070"):
        Client("https://gpu1:7070/v1")
    for server in ("gpu1:", "gpu1:http", "gpu1:70700"):
        with pytest.raises(ValueError, match=f"'{server}' does not end with a port; give HOST:PORT"):
            Client(server)
    with Client("unix:/run/luthier.sock") as client:
        assert client.server == "unix:/run/luthier.sock"
    monkeypatch.delenv("LUTHIER_SERVER", raising=False)
    monkeypatch.setenv("LUTHIER_CONTEXT", "lab")
    with pytest.raises(ValueError, match="LUTHIER_CONTEXT: 'lab' .* set LUTHIER_SERVER"):
        Client()
    monkeypatch.setenv("LUTHIER_SERVER", "gpu1:7070")
    with Client() as client:
        assert client.server == "gpu1:7070"


def test_a_file_that_cannot_be_used_is_named_with_its_variable(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").touch()
    for variable in ("LUTHIER_TOKEN_FILE", "LUTHIER_TLS_CA"):
        monkeypatch.setenv(variable, str(tmp_path / "none"))
        with pytest.raises(ValueError, match=f"{variable}: .*/none cannot be read: No such file"):
            Client()
        monkeypatch.setenv(variable, str(tmp_path / "empty"))
        with pytest.raises(ValueError, match=f"{variable}: .*/empty holds no "):
            Client()
        monkeypatch.delenv(variable)
    with pytest.raises(ValueError, match="tls.ca: holds no PEM block; give what is in the file"):
        Tls(b"/etc/luthier/ca.pem")
    with pytest.raises(ValueError, match="certificate and key belong together; give both"):
        Tls(b"-----BEGIN CERTIFICATE-----", certificate=b"-----BEGIN CERTIFICATE-----")


def test_an_encrypted_server_is_known_by_its_authority(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ours", "foreign"):
        subprocess.run([BIN / "luthier", "admin", "tls", "init", "--to", tmp_path / name], check=True, capture_output=True)
    ours = tmp_path / "ours"
    server = Server(
        tmp_path, "--tls-cert", str(ours / "server.pem"), "--tls-key", str(ours / "server.key"),
        "--tls-client-ca", str(ours / "ca.pem"),
    )
    try:
        ca, certificate, key = ((ours / file).read_bytes() for file in ("ca.pem", "client.pem", "client.key"))
        with Client(server.address, tls=Tls(ca, certificate, key)) as client:
            assert client.list_jobs() == []
        impatient = luthier.RetryPolicy(attempts=1)
        for tls in (None, Tls(ca), Tls((tmp_path / "foreign/ca.pem").read_bytes(), certificate, key)):
            with Client(server.address, tls=tls, retry=impatient) as stranger:
                with pytest.raises(luthier.Error, match="UNAVAILABLE"):
                    stranger.list_jobs()
        for variable, file in (("CA", "ca.pem"), ("CERT", "client.pem"), ("KEY", "client.key")):
            monkeypatch.setenv(f"LUTHIER_TLS_{variable}", str(ours / file))
        with Client(server.address) as client:
            assert client.list_jobs() == []
        monkeypatch.delenv("LUTHIER_TLS_KEY")
        with pytest.raises(ValueError, match="belong together"):
            Client(server.address)
    finally:
        server.kill()
