#!/usr/bin/env python3
"""A server of the part of Google Cloud Storage's XML API that Luthier uses, for tests: one bucket, in memory, on this machine only.

    gcs_server.py --port PORT --bucket BUCKET --key-file FILE --administrator TOKEN

It is written after Google's documents and is not Google's: https://cloud.google.com/storage/docs/xml-api (requests, answers, errors),
https://cloud.google.com/storage/docs/authentication/canonical-requests (signed URLs), https://google.aip.dev/auth/4111 (tokens that a
service account signs itself), https://cloud.google.com/compute/docs/metadata (a machine's own tokens). Every token and signature is
checked. What it does not know (a query parameter, a header, a way to say a range) it refuses with 501 and never passes over, so
that no test passes because a condition was not looked at.

FILE becomes the key file of a service account that may do everything; TOKEN is an OAuth token of somebody who may, too, and what
the machine's metadata server gives out. Needs the `openssl` program.
"""

import argparse
import base64
import datetime
import email.utils
import hashlib
import http.server
import itertools
import json
import re
import secrets
import subprocess
import threading
import time
import urllib.parse
import xml.etree.ElementTree
from xml.sax.saxutils import escape

MIB = 1 << 20
SMALLEST_PART = 5 * MIB  # of all but the last
MOST_PARTS = 10_000
PAGE = 3  # keys; Google sends up to 1000, and fewer where it likes
LONGEST_URL = 604_800  # seconds
HOST = "storage.googleapis.com"  # what URLs are signed for, whatever name the server goes by here
EMAIL = "tests@luthier.iam.gserviceaccount.com"
SCOPES = {"https://www.googleapis.com/auth/cloud-platform", "https://www.googleapis.com/auth/devstorage.full_control"}
METADATA = "/computeMetadata/v1/instance/service-accounts/default/"
# Of every request; none of them changes what it does.
HEADERS = {"accept", "accept-encoding", "authorization", "connection", "content-length", "content-type", "host", "user-agent"}


class Refusal(Exception):
    def __init__(self, status, code, message):
        super().__init__(message)
        self.status, self.code = status, code


def unknown(what):
    return Refusal(501, "NotImplemented", f"this server of the tests does not know {what}")


class ServiceAccount:
    """A key, and what it has signed."""

    def __init__(self):
        make = ["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]
        self.private_key = subprocess.run(make, check=True, capture_output=True, text=True).stdout
        self.key_id = secrets.token_hex(20)
        modulus = subprocess.run(
            ["openssl", "rsa", "-noout", "-modulus"], input=self.private_key, check=True, capture_output=True, text=True
        ).stdout
        self.modulus = int(modulus.strip().removeprefix("Modulus="), 16)

    def key_file(self):
        return json.dumps(
            {
                "type": "service_account",
                "project_id": "luthier",
                "private_key_id": self.key_id,
                "private_key": self.private_key,
                "client_email": EMAIL,
                "client_id": "1",
                "token_uri": "https://oauth2.googleapis.com/token",
            }
        )

    def has_signed(self, text, signature):
        """RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017, 8.2.2)."""
        size = (self.modulus.bit_length() + 7) // 8
        digest = bytes.fromhex("3031300d060960864801650304020105000420") + hashlib.sha256(text.encode()).digest()
        padded = b"\0\1" + b"\xff" * (size - len(digest) - 3) + b"\0" + digest
        return len(signature) == size and pow(int.from_bytes(signature, "big"), 65537, self.modulus).to_bytes(size, "big") == padded

    def check_token(self, token):
        """A JSON Web Token that the account made for itself, for an hour at most."""
        try:
            head, claims, signature = token.split(".")
            parts = [base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in (head, claims, signature)]
            header, said = json.loads(parts[0]), json.loads(parts[1])
            names, scopes, begin, end = {said["iss"], said["sub"]}, set(said["scope"].split()), said["iat"], said["exp"]
        except (KeyError, ValueError):
            raise Refusal(401, "AuthenticationRequired", "the bearer token is none") from None
        if header != {"typ": "JWT", "alg": "RS256", "kid": self.key_id} or names != {EMAIL}:
            raise Refusal(401, "AuthenticationRequired", "the token is of another key or account")
        if not SCOPES & scopes:
            raise Refusal(403, "AccessDenied", "the token's scope does not reach storage")
        now = time.time()
        if not self.has_signed(f"{head}.{claims}", parts[2]) or begin > now + 60 or end < now or end - begin > 3600:
            raise Refusal(401, "AuthenticationRequired", "the token is not signed, or not valid now")

    def check_url(self, method, path, query):
        """A signed URL, version 4."""
        expected = {f"X-Goog-{name}" for name in ("Algorithm", "Credential", "Date", "Expires", "SignedHeaders", "Signature")}
        if method != "GET" or set(query) != expected:
            raise unknown("signed URLs but those to get an object, with nothing else in them")
        if query["X-Goog-Algorithm"] != "GOOG4-RSA-SHA256" or query["X-Goog-SignedHeaders"] != "host":
            raise unknown("signatures but GOOG4-RSA-SHA256, or signed headers")
        date = query["X-Goog-Date"]
        scope = f"{date[:8]}/auto/storage/goog4_request"
        if query["X-Goog-Credential"] != f"{EMAIL}/{scope}":
            raise Refusal(403, "AccessDenied", "the URL's credential is another account's, or of another day")
        quote = lambda text: urllib.parse.quote(text, safe="-_.~")
        pairs = sorted((quote(name), quote(value)) for name, value in query.items() if name != "X-Goog-Signature")
        canonical = "&".join(f"{name}={value}" for name, value in pairs)
        request = f"{method}\n{path}\n{canonical}\nhost:{HOST}\n\nhost\nUNSIGNED-PAYLOAD"
        text = "\n".join(["GOOG4-RSA-SHA256", date, scope, hashlib.sha256(request.encode()).hexdigest()])
        if not self.has_signed(text, bytes.fromhex(query["X-Goog-Signature"])):
            raise Refusal(403, "SignatureDoesNotMatch", "the URL was not signed so by that account")
        begin = datetime.datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.timezone.utc).timestamp()
        lifetime = int(query["X-Goog-Expires"])
        if not 1 <= lifetime <= LONGEST_URL:
            raise Refusal(400, "InvalidArgument", "a URL lives for a second to seven days")
        if not begin - 900 <= time.time() < begin + lifetime:
            raise Refusal(400, "ExpiredToken", "the URL is over, or not valid yet")


class Object:
    generations = itertools.count(int(time.time() * 1e6))

    def __init__(self, data, kind, etag):
        self.data, self.kind, self.etag = data, kind, etag
        self.generation = next(Object.generations)
        self.modified = time.time()

    def headers(self):
        return {
            "ETag": self.etag,
            "Last-Modified": email.utils.formatdate(self.modified, usegmt=True),
            "x-goog-generation": str(self.generation),
            "x-goog-metageneration": "1",
        }


class Upload:
    def __init__(self, name, kind):
        self.name, self.kind = name, kind
        self.parts = {}  # number: (ETag, bytes)


def md5_etag(data):
    return f'"{hashlib.md5(data).hexdigest()}"'


def xml_of(root, namespace, fields):
    """`fields`: names with text, or with further fields."""

    def write(fields):
        return "".join(f"<{name}>{write(value) if isinstance(value, list) else escape(str(value))}</{name}>" for name, value in fields)

    attribute = f" xmlns='{namespace}'" if namespace else ""
    return f"<?xml version='1.0' encoding='UTF-8'?><{root}{attribute}>{write(fields)}</{root}>".encode()


MULTIPART = "http://s3.amazonaws.com/doc/2006-03-01/"
LISTS = "http://doc.s3.amazonaws.com/2006-03-01"


class Bucket:
    """Answers are (status, headers, body)."""

    def __init__(self, name):
        self.name = name
        self.objects, self.uploads = {}, {}
        self.lock = threading.Lock()

    def object(self, name):
        if name not in self.objects:
            raise Refusal(404, "NoSuchKey", f"there is no {name}")
        return self.objects[name]

    def upload(self, name, upload_id):
        upload = self.uploads.get(upload_id)
        if upload is None or upload.name != name:
            raise Refusal(404, "NoSuchUpload", "it was completed, aborted, or never begun")
        return upload

    def put(self, name, kind, body, generation):
        if not re.fullmatch(r"[^\r\n]+", name) or len(name.encode()) > 1024:
            raise Refusal(400, "InvalidArgument", "an object's name has 1 to 1024 bytes and no line break")
        if generation is not None:
            there = self.objects[name].generation if name in self.objects else 0
            if not generation.isdecimal():
                raise Refusal(400, "InvalidArgument", "a generation is a number")
            if int(generation) != there:
                raise Refusal(412, "PreconditionFailed", f"its generation is {there}")
        stored = self.objects[name] = Object(body, kind, md5_etag(body))
        return 200, stored.headers(), b""

    def get(self, name, span):
        found = self.object(name)
        headers = found.headers() | {"Content-Type": found.kind, "Accept-Ranges": "bytes"}
        if span is None:
            return 200, headers, found.data
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", span)
        if match is None or int(match[1]) > int(match[2]):
            raise unknown(f"the range {span}")
        begin, end = int(match[1]), min(int(match[2]) + 1, len(found.data))
        if begin >= len(found.data):
            raise Refusal(416, "InvalidRange", f"it has {len(found.data)} bytes")
        return 206, headers | {"Content-Range": f"bytes {begin}-{end - 1}/{len(found.data)}"}, found.data[begin:end]

    def delete(self, name):
        self.object(name)
        del self.objects[name]
        return 204, {}, b""

    def begin_upload(self, name, kind, body):
        if body:
            raise Refusal(400, "InvalidArgument", "the beginning of an upload has no body")
        upload_id = secrets.token_hex(16)
        self.uploads[upload_id] = Upload(name, kind)
        fields = [("Bucket", self.name), ("Key", name), ("UploadId", upload_id)]
        return 200, {}, xml_of("InitiateMultipartUploadResult", MULTIPART, fields)

    def put_part(self, name, upload_id, number, body):
        upload = self.upload(name, upload_id)
        if not number.isdecimal() or not 1 <= int(number) <= MOST_PARTS:
            raise Refusal(400, "InvalidArgument", "parts are numbered from 1 to 10000")
        etag = md5_etag(body)
        upload.parts[int(number)] = (etag, body)
        return 200, {"ETag": etag}, b""

    def complete_upload(self, name, upload_id, body):
        upload = self.upload(name, upload_id)
        try:
            root = xml.etree.ElementTree.fromstring(body)
            named = [(int(part.findtext("PartNumber")), part.findtext("ETag")) for part in root]
        except (xml.etree.ElementTree.ParseError, TypeError, ValueError):
            raise Refusal(400, "MalformedXML", "it is no list of parts") from None
        if root.tag != "CompleteMultipartUpload" or not named or any(part.tag != "Part" or len(part) != 2 for part in root):
            raise Refusal(400, "MalformedXML", "it is no list of parts")
        if any(one >= next_one for (one, _), (next_one, _) in itertools.pairwise(named)):
            raise Refusal(400, "InvalidPartOrder", "parts are named in ascending order")
        if any(upload.parts.get(number, (None,))[0] != etag for number, etag in named):
            raise Refusal(400, "InvalidPart", "a part is not there, or has another ETag")
        parts = [upload.parts[number][1] for number, _ in named]
        if any(len(part) < SMALLEST_PART for part in parts[:-1]):
            raise Refusal(400, "EntityTooSmall", "every part but the last has 5 MiB at least")
        etags = "".join(etag for _, etag in named).encode()
        stored = self.objects[name] = Object(b"".join(parts), upload.kind, f'"{hashlib.md5(etags).hexdigest()}-{len(named)}"')
        del self.uploads[upload_id]
        fields = [("Location", f"http://{HOST}/{self.name}/{name}"), ("Bucket", self.name), ("Key", name), ("ETag", stored.etag)]
        return 200, {"x-goog-generation": str(stored.generation)}, xml_of("CompleteMultipartUploadResult", MULTIPART, fields)

    def abort_upload(self, name, upload_id):
        self.upload(name, upload_id)
        del self.uploads[upload_id]
        return 204, {}, b""

    def list_uploads(self):
        fields = [("Bucket", self.name)]
        fields += [("Upload", [("Key", upload.name), ("UploadId", upload_id)]) for upload_id, upload in self.uploads.items()]
        return 200, {}, xml_of("ListMultipartUploadsResult", MULTIPART, fields + [("IsTruncated", "false")])

    def list(self, prefix, after):
        names = sorted((name for name in self.objects if name.startswith(prefix)), key=str.encode)
        names = [name for name in names if name.encode() > after.encode()]
        page = names[:PAGE]
        fields = [("Name", self.name), ("Prefix", prefix), ("KeyCount", len(page))]
        fields.append(("IsTruncated", "true" if len(names) > PAGE else "false"))
        if len(names) > PAGE:
            fields.append(("NextContinuationToken", base64.urlsafe_b64encode(page[-1].encode()).decode()))
        for name in page:
            found = self.objects[name]
            time_text = datetime.datetime.fromtimestamp(found.modified, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
            facts = [("Key", name), ("Generation", found.generation), ("MetaGeneration", 1), ("LastModified", time_text)]
            fields.append(("Contents", facts + [("ETag", found.etag), ("Size", len(found.data))]))
        return 200, {}, xml_of("ListBucketResult", LISTS, fields)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes

    def handle_one(self):
        body = b""
        try:
            if self.command in ("PUT", "POST"):
                if "Content-Length" not in self.headers:
                    self.close_connection = True
                    raise Refusal(411, "MissingContentLength", "give a Content-Length; chunks are not known here")
                body = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers, answer = self.answer_to(body)
        except (Refusal, ValueError) as error:
            refusal = error if isinstance(error, Refusal) else Refusal(400, "InvalidArgument", str(error))
            fields = [("Code", refusal.code), ("Message", str(refusal))]
            status, headers, answer = refusal.status, {"Content-Type": "application/xml"}, xml_of("Error", "", fields)
        self.send_response(status)
        if status != 204:
            headers = {"Content-Length": str(len(answer))} | headers
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:  # a client that is not told sends its next request into it
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD" and status != 204:
            self.wfile.write(answer)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one

    def answer_to(self, body):
        path, _, text = self.path.partition("?")
        pairs = urllib.parse.parse_qsl(text, keep_blank_values=True)
        query = dict(pairs)
        if len(query) != len(pairs):
            raise unknown("a parameter that is there twice")
        if path.startswith(METADATA):
            return self.metadata(path.removeprefix(METADATA))
        bucket_name, _, name = path.removeprefix("/").partition("/")
        bucket_name, name = urllib.parse.unquote(bucket_name, errors="strict"), urllib.parse.unquote(name, errors="strict")
        query = self.authorize(path, query)
        bucket = self.server.bucket
        if bucket_name != bucket.name:
            raise Refusal(404, "NoSuchBucket", "the bucket does not exist")
        headers = {header.lower(): value for header, value in self.headers.items() if header.lower() not in HEADERS}
        with bucket.lock:
            return self.of_object(bucket, name, query, headers, body) if name else self.of_bucket(bucket, query, headers)

    def authorize(self, path, query):
        """Answers the query without what proved who asks."""
        bearer = self.headers.get("Authorization", "")
        if "X-Goog-Signature" in query and not bearer:
            self.server.account.check_url(self.command, path, query)
            return {}
        if not bearer.startswith("Bearer "):
            raise Refusal(403, "AccessDenied", "nobody may do that without a token")
        if bearer != f"Bearer {self.server.administrator}":
            self.server.account.check_token(bearer.removeprefix("Bearer "))
        return query

    def of_object(self, bucket, name, query, headers, body):
        kind = self.headers.get("Content-Type", "application/octet-stream")
        match self.command, sorted(query), sorted(headers):
            case "PUT", [], [] | ["x-goog-if-generation-match"]:
                return bucket.put(name, kind, body, headers.get("x-goog-if-generation-match"))
            case "PUT", ["partNumber", "uploadId"], []:
                return bucket.put_part(name, query["uploadId"], query["partNumber"], body)
            case "POST", ["uploads"], []:
                return bucket.begin_upload(name, kind, body)
            case "POST", ["uploadId"], []:
                return bucket.complete_upload(name, query["uploadId"], body)
            case "DELETE", ["uploadId"], []:
                return bucket.abort_upload(name, query["uploadId"])
            case "DELETE", [], []:
                return bucket.delete(name)
            case "GET" | "HEAD", [], [] | ["range"]:
                return bucket.get(name, headers.get("range"))
        raise unknown(f"{self.command} of an object with the parameters {sorted(query)} and the headers {sorted(headers)}")

    def of_bucket(self, bucket, query, headers):
        match self.command, sorted(query), sorted(headers):
            case "GET", ["uploads"], []:
                return bucket.list_uploads()
            case "GET", [*names], [] if query.get("list-type") == "2" and set(names) <= {"list-type", "prefix", "continuation-token"}:
                after = base64.urlsafe_b64decode(query.get("continuation-token", "")).decode()
                return bucket.list(query.get("prefix", ""), after)
        raise unknown(f"{self.command} of a bucket with the parameters {sorted(query)} and the headers {sorted(headers)}")

    def metadata(self, what):
        if self.command != "GET" or self.headers.get("Metadata-Flavor") != "Google":
            raise Refusal(403, "Forbidden", "Metadata-Flavor: Google is missing")
        if what == "email":
            return 200, {"Content-Type": "application/text"}, EMAIL.encode()
        if what == "token":
            token = {"access_token": self.server.administrator, "expires_in": 3599, "token_type": "Bearer"}
            return 200, {"Content-Type": "application/json"}, json.dumps(token).encode()
        raise unknown(f"{METADATA}{what}")

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


def main():
    parser = argparse.ArgumentParser(description="Google Cloud Storage's XML API, as far as Luthier's tests need it.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--bucket", required=True)
    parser.add_argument("--key-file", required=True)
    parser.add_argument("--administrator", required=True)
    options = parser.parse_args()
    server = Server(("127.0.0.1", options.port), Handler, bind_and_activate=False)
    server.bucket, server.account, server.administrator = Bucket(options.bucket), ServiceAccount(), options.administrator
    with open(options.key_file, "w", encoding="utf-8") as file:
        file.write(server.account.key_file())
    # Who reaches it finds the file.
    server.server_bind()
    server.server_activate()
    server.serve_forever()


if __name__ == "__main__":
    main()
