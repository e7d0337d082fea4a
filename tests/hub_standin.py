"""A stand-in of the Hugging Face Hub on loopback: the part of its HTTP API that downloads use.

Written against huggingface_hub 2.4 and datasets 5.2: model and data set info, revision, tree, paths-info, and HEAD and
GET of `resolve`. A file in LFS is answered with a redirect to another host, as the Hub redirects to its CDN. Every
request is written down, so that a test can say what was asked for and what was sent along.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

TOKEN = "hf_a_token_of_the_tests"
_LFS = (".safetensors", ".bin", ".parquet", ".gz", ".gguf")
_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+))?(?:/(.*))?")
_RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Repository:
    """Files of one repository at one commit. `state` is public, gated or missing."""

    files: Mapping[str, bytes]
    commit: str
    state: str = "public"
    branches: tuple[str, ...] = ("main",)

    def knows(self, revision: str) -> bool:
        return revision == self.commit or revision in self.branches


@dataclass(frozen=True)
class Request:
    """One request: where it went (`hub` or `cdn`), and whether a token came with it."""

    host: str
    method: str
    path: str
    token: bool
    range: str | None

    @property
    def file(self) -> str | None:
        """The file of a repository that it asks for, else None."""
        match = _RESOLVE.fullmatch(self.path)
        return match[4] if match else None


@dataclass
class Hub:
    """The running stand-in. A download of a blob in `cut` breaks off halfway, once; one in `stall` hangs there."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    cut: set[str] = field(default_factory=set)
    stall: set[str] = field(default_factory=set)
    stalled: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    broken: bool = False  # answers 503 to everything
    endpoint: str = ""
    cdn: str = ""

    def add(self, name: str, files: Mapping[str, bytes], *, dataset: bool = False, **changes: Any) -> Repository:
        """Publish a repository under `org/name`."""
        commit = hashlib.sha1(b"".join(k.encode() + b"\0" + v for k, v in sorted(files.items()))).hexdigest()
        repository = Repository(dict(files), commit, **changes)
        self.repositories[f"datasets/{name}" if dataset else f"models/{name}"] = repository
        return repository

    def add_folder(self, name: str, folder: Path, **changes: Any) -> Repository:
        """Publish the files of a folder."""
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        return self.add(name, files, **changes)

    def blob(self, digest: str) -> bytes | None:
        for repository in self.repositories.values():
            for data in repository.files.values():
                if hashlib.sha256(data).hexdigest() == digest:
                    return data
        return None

    def fetched(self) -> list[str]:
        """Files whose content was asked for, in order."""
        return [request.file for request in self.requests if request.method == "GET" and request.file]

    def environment(self, home: Path, **changes: str) -> dict[str, str]:
        """Of a child process whose Hub this is, with a Hub cache in `home`."""
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
        }
        own = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_ETAG_TIMEOUT": "5",
            "HF_HUB_DOWNLOAD_TIMEOUT": "5",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }
        return {**kept, **own, **changes}


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve a Hub and its CDN on two ports of loopback until the block ends."""
    hub = Hub()
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub, name)) for name in ("hub", "cdn")]
    hub.endpoint = f"http://127.0.0.1:{servers[0].server_address[1]}"
    hub.cdn = f"http://localhost:{servers[1].server_address[1]}"  # another host name: no token may go there
    threads = [threading.Thread(target=server.serve_forever, daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        hub.ended.set()
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def _entry(path: str, data: bytes) -> dict[str, Any]:
    """A file as the tree and paths-info endpoints describe it."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": _git_hash(data)}
    if path.endswith(_LFS):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


def _sibling(path: str, data: bytes, blobs: bool) -> dict[str, Any]:
    """A file as the info endpoint describes it."""
    if not blobs:
        return {"rfilename": path}
    entry = {"rfilename": path, "size": len(data), "blobId": _git_hash(data)}
    if path.endswith(_LFS):
        entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


def _tree(files: Mapping[str, bytes], below: str, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{below.rstrip('/')}/" if below else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, data in files.items():
        if not path.startswith(prefix):
            continue
        folder, slash, _ = path[len(prefix) :].partition("/")
        if slash:
            entries[prefix + folder] = {"type": "directory", "path": prefix + folder, "oid": "0" * 40, "size": 0}
        if recursive or not slash:
            entries[path] = _entry(path, data)
    return list(entries.values())


def _handler(hub: Hub, host: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            parts = urlsplit(self.path)
            path = (
                parts.path if host == "cdn" else unquote(parts.path) if "/revision/" not in parts.path else parts.path
            )
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = self.headers.get("Authorization") is not None
            hub.requests.append(Request(host, self.command, path, token, self.headers.get("Range")))
            if hub.broken:
                return self._send(503, b"")
            if host == "cdn":
                return self._blob(path.rpartition("/")[2])
            if match := _RESOLVE.fullmatch(path):
                return self._resolve(match)
            if match := _API.fullmatch(path):
                return self._api(match, parse_qs(parts.query), body)
            return self._send(404, b"")

        def _found(self, kind: str, name: str, revision: str | None) -> Repository | None:
            """The repository, or None once its refusal was sent."""
            repository = hub.repositories.get(f"{kind}/{name}")
            if repository is None:
                self._send(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
                return None
            if revision is not None and not repository.knows(revision):
                message = f"Invalid rev id: {revision}"
                self._send(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": message})
                return None
            return repository

        def _api(self, match: re.Match[str], query: dict[str, list[str]], body: bytes) -> None:
            kind, name, what, revision, below = match.groups()
            revision = unquote(revision) if revision else None
            repository = self._found(kind, name, revision)
            if repository is None:
                return None
            files = repository.files
            if what == "tree":
                return self._json(
                    _tree(files, unquote(below or ""), query.get("recursive", ["false"])[0].lower() == "true")
                )
            if what == "paths-info":
                values = json.loads(body) if body.startswith(b"{") else parse_qs(body.decode())
                asked = values["paths"]
                listed = _tree(files, "", recursive=True)
                return self._json([entry for entry in listed if entry["path"] in asked])
            blobs = query.get("blobs", ["false"])[0].lower() == "true"
            return self._json(
                {
                    "id": name,
                    "sha": repository.commit,
                    "private": False,
                    "gated": "manual" if repository.state == "gated" else False,
                    "siblings": [_sibling(path, data, blobs) for path, data in files.items()],
                }
            )

        def _resolve(self, match: re.Match[str]) -> None:
            kind = "datasets" if match[1] else "models"
            repository = self._found(kind, match[2], unquote(match[3]))
            if repository is None:
                return None
            if repository.state == "gated":
                text = f"Access to {match[2]} is restricted"
                return self._send(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": text})
            commit = {"X-Repo-Commit": repository.commit}
            data = repository.files.get(match[4])
            if data is None:
                return self._send(404, b"", {**commit, "X-Error-Code": "EntryNotFound"})
            if not match[4].endswith(_LFS):
                return self._content(data, {**commit, "ETag": f'"{_git_hash(data)}"'})
            digest = hashlib.sha256(data).hexdigest()
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            return self._send(302, b"", {**commit, **linked, "Location": f"{hub.cdn}/{quote(match[2])}/{digest}"})

        def _blob(self, digest: str) -> None:
            data = hub.blob(digest)
            if data is None:
                return self._send(404, b"")
            return self._content(data, {"ETag": f'"{digest}"'}, digest)

        def _content(self, data: bytes, headers: dict[str, str], name: str = "") -> None:
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            status, part = 200, data
            if asked:
                first, last = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
                status, part = 206, data[first : last + 1]
                headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}
            if name in hub.cut and self.command == "GET":
                hub.cut.discard(name)
                self._send(status, part, headers, send=len(part) // 2)
                self.close_connection = True
                return None
            if name in hub.stall and self.command == "GET":
                self._send(status, part, headers, send=len(part) // 2)
                hub.stalled.set()
                hub.ended.wait(60)
                self.close_connection = True
                return None
            return self._send(status, part, {**headers, "Accept-Ranges": "bytes"})

        def _json(self, value: Any) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(
            self, status: int, body: bytes, headers: Mapping[str, str] | None = None, send: int | None = None
        ) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body if send is None else body[:send])
                self.wfile.flush()

    return Handler
