"""Google Cloud Storage in memory, for tests that start a program on gs:// paths.

TensorFlow's gs:// file system has www.googleapis.com and storage.googleapis.com built in, but it
honours a proxy, as tensorstore does. So this is an HTTPS proxy: it answers CONNECT to a googleapis
host, ends TLS with a certificate of its own authority, and serves the store behind it. To clients
that take another address (google-cloud-storage, by which Orbax asks what kind of bucket it has) it
is a plain server on the same port. A program is sent here by its environment alone:

    with FakeGcs("bucket") as gcs:
        subprocess.run([..., "--workdir=gs://bucket/run"], env={**os.environ, **gcs.environment})
        gcs.objects["bucket", "run/config.json"]

Imitated: objects' metadata, content with ranges, list with prefix, delimiter and pages, simple and
resumable uploads, delete and rewrite; preconditions on generations; a bucket's metadata.

Not imitated: permissions (any token will do), `fields` (answers are whole), hierarchical
namespaces, old generations, checksums, custom metadata, multipart and gzipped uploads, rewrites in
several calls, rate limits and failures. What is asked beyond that is answered with 501, any other
host with 403.
"""

import base64
import itertools
import json
import re
import ssl
import sys
import tempfile
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

import trustme

MAX_PAGE = 1000

# Status, headers, and content: JSON or bytes.
Answer = tuple[int, dict[str, str], dict | bytes]


class Blob(bytes):
    """The content of an object, with the generation that the store gave it."""

    generation: int
    updated: str


class ApiError(Exception):
    """An answer other than success: `ApiError(status, message)`."""


class FakeGcs:
    """A running store of the given buckets, empty at first; a context manager.

    Attributes:
      objects: content by bucket and name; `put` adds to it.
      requests: a line for each request, such as "GET /storage/v1/b/bucket/o?prefix=run%2F".
      environment: what a program's environment needs to come here.
    """

    def __init__(self, *buckets: str, page: int = MAX_PAGE):
        self.buckets = buckets
        self.page = page
        self.objects: dict[tuple[str, str], Blob] = {}
        self.requests: list[str] = []
        self.lock = threading.Lock()
        # Bucket, parameters and content so far; of a finished one, the object's metadata.
        self._uploads: dict[str, tuple[str, dict, bytearray] | dict] = {}
        self._numbers = itertools.count(1_700_000_000_000_001)

    def __enter__(self) -> "FakeGcs":
        authority = trustme.CA()
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("*.googleapis.com").configure_cert(self.tls)
        self._folder = tempfile.TemporaryDirectory(prefix="fake_gcs_")
        bundle = Path(self._folder.name) / "authority.pem"
        authority.cert_pem.write_to_path(bundle)
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": self}))
        # The server looks for the call to stop once in so many seconds.
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()
        self.environment = _environment(self._server.server_port, str(bundle))
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._folder.cleanup()

    def put(self, bucket: str, name: str, content: bytes) -> dict:
        """Writes an object and returns its metadata."""
        blob = Blob(content)
        blob.generation = next(self._numbers)
        blob.updated = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        self.objects[bucket, name] = blob
        return self.metadata(bucket, name)

    def metadata(self, bucket: str, name: str) -> dict:
        blob = self.objects[bucket, name]
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(blob)),
            "generation": str(blob.generation),
            "metageneration": "1",
            "timeCreated": blob.updated,
            "updated": blob.updated,
        }

    def find(self, bucket: str, name: str, query: dict) -> Blob:
        """Return the object that a request reads, deletes or copies."""
        blob = self.objects.get((bucket, name))
        if blob is None:
            raise ApiError(404, f"No such object: {bucket}/{name}")
        _check(blob.generation, query)
        return blob

    def write(self, bucket: str, name: str, query: dict, content: bytes) -> dict:
        """Writes an object if the preconditions hold, and returns its metadata."""
        _check(getattr(self.objects.get((bucket, name)), "generation", 0), query)
        return self.put(bucket, name, content)

    def names(self, bucket: str, query: dict) -> dict:
        """One page of a bucket's names, those beyond the delimiter folded into prefixes."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        is_object = {}
        for holder, name in self.objects:
            if holder == bucket and name.startswith(prefix):
                end = name.find(delimiter, len(prefix)) if delimiter else -1
                is_object[name if end < 0 else name[: end + len(delimiter)]] = end < 0
        after = base64.urlsafe_b64decode(query.get("pageToken", "")).decode()
        start, stop = query.get("startOffset", ""), query.get("endOffset") or chr(sys.maxunicode)
        names = [name for name in sorted(is_object) if name > after and start <= name < stop]
        page = names[: min(self.page, int(query.get("maxResults", MAX_PAGE)))]
        answer = {
            "kind": "storage#objects",
            "items": [self.metadata(bucket, name) for name in page if is_object[name]],
            "prefixes": [name for name in page if not is_object[name]],
        }
        if len(names) > len(page):
            answer["nextPageToken"] = base64.urlsafe_b64encode(page[-1].encode()).decode()
        return {key: value for key, value in answer.items() if value}

    def begin_upload(self, bucket: str, query: dict) -> str:
        """Returns the id of a new resumable upload."""
        identity = f"upload-{next(self._numbers)}"
        self._uploads[identity] = (bucket, query, bytearray())
        return identity

    def upload(self, identity: str, span: str | None, chunk: bytes) -> dict | int:
        """Takes a chunk, or none, and returns metadata when it was the last, else the size so far.

        Args:
          identity: from `begin_upload`.
          span: the Content-Range; a request without has everything.
          chunk: these bytes.
        """
        match self._uploads.get(identity):
            case None:
                raise ApiError(404, "No such upload")
            case dict() as finished:
                return finished
            case bucket, query, content:
                pass
        if span is None:
            content[:] = chunk
        else:
            pattern = r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)"
            first, total = re.fullmatch(pattern, span).groups()
            if first is not None:
                content[int(first) :] = chunk
            if total != str(len(content)):
                return len(content)
        finished = self.write(bucket, query["name"], query, content)
        self._uploads[identity] = finished
        return finished


def _check(generation: int, query: dict) -> None:
    """Holds an object's generation, 0 where there is none, against a request's preconditions."""
    if query.get("ifGenerationMatch", str(generation)) != str(generation):
        raise ApiError(412, "At least one of the pre-conditions you specified did not hold.")
    if query.get("ifGenerationNotMatch") == str(generation):
        raise ApiError(304, "Not Modified")


def _environment(port: int, bundle: str) -> dict[str, str]:
    here = f"http://127.0.0.1:{port}"
    return {
        "https_proxy": here,
        "no_proxy": "localhost,127.0.0.1",
        "CURL_CA_BUNDLE": bundle,
        "TENSORSTORE_CA_BUNDLE": bundle,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
        "NO_GCE_CHECK": "true",
        # As it is, TensorFlow tries ten times within some minutes.
        "GCS_RETRY_CONFIG_MAX_RETRIES": "2",
        "GCS_RETRY_CONFIG_INIT_DELAY_TIME_US": "10000",
        # For google-cloud-storage.
        "STORAGE_EMULATOR_HOST": here,
        "GOOGLE_CLOUD_PROJECT": "any",
    }


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request, client_address) -> None:
        # A client that is killed is no error here.
        if not isinstance(sys.exception(), ConnectionError | ssl.SSLError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One connection: what a client asks, after a CONNECT through TLS."""

    store: FakeGcs
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_CONNECT(self) -> None:
        self.store.requests.append(self.requestline)
        if not self.path.endswith(".googleapis.com:443"):
            self.send_error(403)
            return
        self.send_response(200)
        self.end_headers()
        self.request = self.store.tls.wrap_socket(self.request, server_side=True)
        self.setup()
        self.close_connection = False

    def finish(self) -> None:
        super().finish()
        self.request.close()

    def do_GET(self) -> None:
        body = self._body()
        url = urlsplit(self.path)
        path = [unquote(part) for part in url.path.split("/")[1:]]
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        with self.store.lock:
            self.store.requests.append(f"{self.command} {self.path}")
            try:
                answer = self._answer(path, query, body)
            except ApiError as error:
                status, message = error.args
                answer = status, {}, {"error": {"code": status, "message": message}}
        self._send(*answer)

    do_POST = do_PUT = do_DELETE = do_GET

    def _body(self) -> bytes:
        # TensorFlow's uploads have a length as well, that of all chunks.
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self._read(int(self.headers.get("Content-Length", 0)))
        body = bytearray()
        while size := int(self.rfile.readline() or "0", 16):
            body += self._read(size)
            self._read(len(b"\r\n"))
        self._read(len(b"\r\n"))
        return bytes(body)

    def _read(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionError("the client is gone")
        return data

    def _answer(self, path: list[str], query: dict, body: bytes) -> Answer:
        store = self.store
        # The longest pattern first: an object's name may follow its bucket's, without more.
        match path:
            case ["upload", "storage", "v1", "b", bucket, "o"]:
                rest = ["upload"]
            case ["storage", "v1", "b", bucket, *rest]:
                pass
            case [bucket, *name]:
                rest, query["alt"] = ["o", "/".join(name)], "media"
        if bucket not in store.buckets:
            raise ApiError(404, "The specified bucket does not exist.")
        match self.command, rest:
            case "POST" | "PUT", ["upload"]:
                return self._upload(bucket, query, body)
            case "GET", []:
                return 200, {}, {"kind": "storage#bucket", "name": bucket, "location": "US-EAST1"}
            case "GET", ["storageLayout"]:
                return 200, {}, {"bucket": bucket, "hierarchicalNamespace": {"enabled": False}}
            case "GET", ["o"]:
                return 200, {}, store.names(bucket, query)
            case "GET", ["o", name]:
                blob = store.find(bucket, name, query)
                if query.get("alt") == "media":
                    return self._content(blob)
                return 200, {}, store.metadata(bucket, name)
            case "DELETE", ["o", name]:
                store.find(bucket, name, query)
                del store.objects[bucket, name]
                return 204, {}, b""
            case "POST", ["o", name, "rewriteTo", "b", to_bucket, "o", to_name]:
                written = store.write(to_bucket, to_name, query, store.find(bucket, name, {}))
                return 200, {}, {"done": True, "resource": written}
        raise ApiError(501, f"not imitated: {self.command} {self.path}")

    def _content(self, blob: Blob) -> Answer:
        headers = {"x-goog-generation": str(blob.generation)}
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            return 200, headers, blob
        first, last = span.groups()
        start = int(first) if first else max(0, len(blob) - int(last))
        stop = min(len(blob), int(last) + 1) if first and last else len(blob)
        if start >= stop:
            raise ApiError(416, "The requested range cannot be satisfied.")
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(blob)}"
        return 206, headers, blob[start:stop]

    def _upload(self, bucket: str, query: dict, body: bytes) -> Answer:
        match query:
            case {"upload_id": identity}:
                done = self.store.upload(identity, self.headers.get("Content-Range"), body)
                if isinstance(done, dict):
                    return 200, {}, done
                return 308, {"Range": f"bytes=0-{done - 1}"} if done else {}, b""
            case {"uploadType": "media", "name": name}:
                return 200, {}, self.store.write(bucket, name, query, body)
            case {"uploadType": "resumable", "name": _}:
                identity = self.store.begin_upload(bucket, query)
                scheme = "https" if isinstance(self.request, ssl.SSLSocket) else "http"
                path = f"{urlsplit(self.path).path}?uploadType=resumable&upload_id={identity}"
                return 200, {"Location": f"{scheme}://{self.headers['Host']}{path}"}, b""
        raise ApiError(501, f"not imitated: {self.command} {self.path}")

    def _send(self, status: int, headers: dict, content: dict | bytes) -> None:
        kind = "application/octet-stream"
        if isinstance(content, dict):
            content, kind = json.dumps(content).encode(), "application/json"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status in (204, 304):
            self.end_headers()
            return
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass
