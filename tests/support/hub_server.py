#!/usr/bin/env python3
"""A server of the part of the Hugging Face hub's HTTP API that Luthier uses, for tests: models in memory, on this machine only.

    hub_server.py --folder FOLDER --port PORT --cdn-port PORT --control-port PORT --token TOKEN [--tls CERTIFICATE KEY --proxy-port PORT]

It is written after the hub's documents and what its own client (huggingface_hub) reads, and is not Hugging Face's:
https://huggingface.co/docs/hub/api (lists of files), https://huggingface.co/docs/hub/rate-limits (429), the client's `file_download.py`
and `utils/_http.py` (redirects, X-Error-Code). What it does not know (a parameter, a header, a way to say a range) it refuses with 501
and never passes over, so that no test passes because something was not looked at.

FOLDER holds ORG/REPO/FILES; every repository has one commit, of which `main` and `refs/pr/1` are names. `.safetensors` and
tokenizer.json are large files: the hub sends whoever asks for them to the other port, which stands for the CDN, takes signed addresses
only, refuses whoever brings a token, and sends on once more. TOKEN is that of the only account. It may not read what is in the
organisation `gated`; without it nobody sees `private`.

With --tls both speak TLS, as https://hub.test and https://cdn.test, and the proxy leads there and nowhere else.

The control port is no part of the hub: GET /requests tells what was asked for so far, PUT /faults takes a list of objects:
`at` (hub, cdn or proxy) and `path` (a regular expression) choose requests, `times` how many of them (all if it is absent), and
`status` with `headers`, `body` (in place of the right one), `cut` (the connection ends after that many bytes of the body),
`whole` (a range is not looked at), `silence` (nothing comes) or `more` (bytes behind the end, without a length) say what happens.
"""

import argparse
import hashlib
import hmac
import http.server
import json
import pathlib
import re
import secrets
import select
import socket
import ssl
import threading
import urllib.parse

HEADERS = {"accept", "accept-encoding", "authorization", "connection", "host", "range", "user-agent"}
SIGNING_KEY = secrets.token_bytes(32)


class Refusal(Exception):
    def __init__(self, status, code, message):
        super().__init__(message)
        self.status, self.code = status, code


def unknown(what):
    return Refusal(501, "NotImplemented", f"this server of the tests does not know {what}")


class File:
    def __init__(self, path, data):
        self.path, self.data = path, data
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.is_large = path.endswith(".safetensors") or path == "tokenizer.json"
        kept = self.pointer() if self.is_large else data
        self.blob_id = hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest()

    def pointer(self):
        """What Git keeps of a large file (git-lfs.com, "Git LFS Specification")."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()

    def facts(self, blobs):
        if not blobs:
            return {"rfilename": self.path}
        facts = {"rfilename": self.path, "blobId": self.blob_id, "size": len(self.data)}
        if self.is_large:
            facts["lfs"] = {"sha256": self.sha256, "size": len(self.data), "pointerSize": len(self.pointer())}
        return facts


class Repository:
    def __init__(self, name, folder):
        self.name = name
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = (File(path.relative_to(folder).as_posix(), path.read_bytes()) for path in paths)
        self.files = {file.path: file for file in files}
        self.commit = hashlib.sha1("".join(file.path + file.sha256 for file in self.files.values()).encode()).hexdigest()

    def check_revision(self, revision):
        if revision not in {self.commit, "main", "refs/pr/1"}:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def file(self, path):
        if path not in self.files:
            raise Refusal(404, "EntryNotFound", f"Entry not found: {path}")
        return self.files[path]


class World:
    """What all ports share."""

    def __init__(self, options):
        self.token = options.token
        self.hub_address = "https://hub.test" if options.tls else f"http://127.0.0.1:{options.port}"
        self.cdn_address = "https://cdn.test" if options.tls else f"http://127.0.0.1:{options.cdn_port}"
        self.ports = {"hub.test:443": options.port, "cdn.test:443": options.cdn_port}
        root = pathlib.Path(options.folder)
        folders = [folder for folder in root.glob("*/*") if folder.is_dir()]
        self.repositories = {name: Repository(name, folder) for folder in folders for name in [folder.relative_to(root).as_posix()]}
        self.contents = {file.sha256: file for repository in self.repositories.values() for file in repository.files.values()}
        self.lock = threading.Lock()
        self.requests, self.faults = [], []

    def note(self, at, handler):
        asked = {"at": at, "path": handler.path, "range": handler.headers.get("Range", "")}
        asked["token"] = "Authorization" in handler.headers
        with self.lock:
            self.requests.append(asked)
            for fault in self.faults:
                if fault["at"] == at and fault.get("times", 1) > 0 and re.search(fault["path"], handler.path):
                    if "times" in fault:
                        fault["times"] -= 1
                    return fault
        return {}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes

    @property
    def world(self):
        return self.server.world

    def do_GET(self):
        fault = self.world.note(self.server.at, self)
        if "silence" in fault:
            self.close_connection = True
            select.select([self.connection], [], [])  # until the other side goes away
            return
        try:
            odd = {name.lower() for name in self.headers} - HEADERS
            if odd or self.headers.get("Accept-Encoding", "identity") != "identity":
                raise unknown(f"the headers {sorted(odd)}, or an encoding")
            if "whole" in fault:
                del self.headers["Range"]
            status, headers, body = self.answer()
        except (Refusal, ValueError) as error:
            refusal = error if isinstance(error, Refusal) else Refusal(400, "BadRequest", str(error))
            status, headers = refusal.status, {"X-Error-Code": refusal.code, "X-Error-Message": str(refusal)}
            body = json.dumps({"error": str(refusal)}).encode()
        if "status" in fault:
            status, headers, body = fault["status"], fault.get("headers", {}), b""
        if "body" in fault:
            body = fault["body"].encode()
        self.send(status, headers, body, fault)

    def send(self, status, headers, body, fault):
        self.send_response(status)
        more = bytes(fault.get("more", 0))
        if more:
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if "cut" in fault and len(body) > fault["cut"]:
            body, self.close_connection = body[: fault["cut"]], True
        self.wfile.write(body + more)

    def log_message(self, *_):
        pass


def content(file, span, headers):
    """The file, or the end of it that a range asks for."""
    if span is None:
        return 200, headers, file.data
    match = re.fullmatch(r"bytes=(\d+)-", span)
    if match is None:
        raise unknown(f"the range {span}")
    begin, size = int(match[1]), len(file.data)
    if begin >= size:
        return 416, headers | {"Content-Range": f"bytes */{size}"}, b""
    return 206, headers | {"Content-Range": f"bytes {begin}-{size - 1}/{size}"}, file.data[begin:]


class HubHandler(Handler):
    def answer(self):
        path, _, query = self.path.partition("?")
        parts = [urllib.parse.unquote(part, errors="strict") for part in path.split("/")[1:]]
        match parts:
            case ["api", "models", owner, name, "revision", revision]:
                if query not in {"", "blobs=true"}:
                    raise unknown(f"the parameters {query}")
                return self.list(self.repository(owner, name), revision, query == "blobs=true")
            case ["api", "resolve-cache", "models", owner, name, commit, *file]:
                repository = self.repository(owner, name)
                if commit != repository.commit or not query:
                    raise Refusal(404, "RevisionNotFound", "it is of no commit")
                return content(repository.file("/".join(file)), self.headers.get("Range"), {})
            case [owner, name, "resolve", revision, *file]:
                return self.resolve(self.repository(owner, name), revision, "/".join(file))
        raise unknown(path)

    def repository(self, owner, name):
        bearer = self.headers.get("Authorization")
        known = bearer == f"Bearer {self.world.token}"
        if bearer is not None and not known:
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        found = self.world.repositories.get(f"{owner}/{name}")
        if found is None or (owner == "private" and not known):
            # Who is nobody learns nothing.
            raise Refusal(404 if known else 401, "RepoNotFound", "Repository not found")
        return found

    def list(self, repository, revision, blobs):
        repository.check_revision(revision)
        facts = {"id": repository.name, "sha": repository.commit, "private": repository.name.startswith("private/")}
        facts["gated"] = "manual" if repository.name.startswith("gated/") else False
        facts["siblings"] = [file.facts(blobs) for file in repository.files.values()]
        return 200, {"Content-Type": "application/json; charset=utf-8"}, json.dumps(facts).encode()

    def resolve(self, repository, revision, path):
        if repository.name.startswith("gated/"):
            status = 403 if "Authorization" in self.headers else 401
            raise Refusal(status, "GatedRepo", f"Access to model {repository.name} is restricted")
        repository.check_revision(revision)
        file = repository.file(path)
        if not file.is_large:
            quoted = urllib.parse.quote(path)
            place = f"/api/resolve-cache/models/{repository.name}/{repository.commit}/{quoted}?etag=%22{file.blob_id}%22"
            return 307, {"Location": place, "X-Repo-Commit": repository.commit}, b""
        headers = {"X-Linked-Size": str(len(file.data)), "X-Linked-ETag": f'"{file.sha256}"', "X-Repo-Commit": repository.commit}
        return 302, headers | {"Location": self.world.cdn_address + signed(f"/edge/{file.sha256}")}, b""


def signed(path):
    return f"{path}?Signature={hmac.new(SIGNING_KEY, path.encode(), hashlib.sha256).hexdigest()}"


class CdnHandler(Handler):
    def answer(self):
        path = self.path.partition("?")[0]
        # As the stores behind CDNs do it: one way of proving who asks, and no other.
        if "Authorization" in self.headers:
            raise Refusal(400, "InvalidArgument", "only one auth mechanism allowed")
        if self.path != signed(path):
            raise Refusal(403, "AccessDenied", "the address is not signed")
        place, sha256 = path.split("/")[1:]
        if place == "edge":
            return 302, {"Location": signed(f"/store/{sha256}")}, b""
        return content(self.world.contents[sha256], self.headers.get("Range"), {"ETag": f'"{secrets.token_hex(32)}"'})


class ControlHandler(Handler):
    def do_GET(self):
        with self.world.lock:
            self.send(200, {}, json.dumps(self.world.requests).encode(), {})

    def do_PUT(self):
        faults = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.world.lock:
            self.world.requests, self.world.faults = [], faults
        self.send(200, {}, b"", {})


class ProxyHandler(Handler):
    """Leads to the two that it knows, without seeing what is said."""

    def do_CONNECT(self):
        fault = self.world.note("proxy", self)
        self.close_connection = True
        if "status" in fault or self.path not in self.world.ports:
            return self.send(fault.get("status", 502), {}, b"", {})
        with socket.create_connection(("127.0.0.1", self.world.ports[self.path])) as there:
            self.send_response(200)
            self.end_headers()
            ends = {self.connection: there, there: self.connection}
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    data = end.recv(1 << 16)
                    if not data:
                        return None
                    ends[end].sendall(data)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, at, port, handler, world, tls=None):
        super().__init__(("127.0.0.1", port), handler)
        self.at, self.world, self.tls = at, world, tls
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def finish_request(self, request, client_address):
        """In the connection's own thread, so that a handshake holds up nobody else."""
        if self.tls is not None:
            request = self.tls.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)

    def handle_error(self, *_):
        """Connections that break are what the tests are about."""


def main():
    parser = argparse.ArgumentParser(description="The Hugging Face hub's API, as far as Luthier's tests need it.")
    for name in ("folder", "token"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("port", "cdn-port", "control-port"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--tls", nargs=2)
    parser.add_argument("--proxy-port", type=int)
    options = parser.parse_args()
    tls = None
    if options.tls:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*options.tls)
    world = World(options)
    Server("hub", options.port, HubHandler, world, tls)
    Server("cdn", options.cdn_port, CdnHandler, world, tls)
    if options.proxy_port:
        Server("proxy", options.proxy_port, ProxyHandler, world)
    Server("control", options.control_port, ControlHandler, world)  # last: who reaches it finds the others
    threading.Event().wait()


if __name__ == "__main__":
    main()
