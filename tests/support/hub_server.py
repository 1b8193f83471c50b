"""A hub on this machine: an HTTP server on 127.0.0.1 that answers the few calls of huggingface_hub that are used.

Repositories, commits, small files in a commit and large ones through LFS, private ones for whom has a token. What it
says where it refuses is what the real hub says to such calls, as far as huggingface_hub reads it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_" + "t0kenForTestsOnly" * 2
_LARGE = (".safetensors", ".onnx", ".bin")


@dataclass
class Repo:
    """One repository: its commits in order, each with all its files."""

    private: bool = False
    gated: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    ignored: tuple[str, ...] = ()

    def commit(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits.append((sha, files))
        return sha

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][1]


class Hub:
    """What the server holds and was asked."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.tokens: list[str | None] = []
        self.uploaded: list[str] = []
        self.url = ""
        self.sending: Callable[[str, bytes], bytes | None] = lambda name, content: content
        """What is sent for a file; None breaks the connection."""

    def put(self, name: str, files: dict[str, bytes], **settings: Any) -> str:
        repo = self.repos.setdefault(name, Repo(**settings))
        return repo.commit(files)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve until the block ends."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path))
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.tokens.append(self.token)
        if self.token not in (None, TOKEN):
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        parts = path.strip("/").split("/")
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.startswith("/api/models/"):
            return self._api(f"{parts[2]}/{parts[3]}", parts[4:], body)
        if path.startswith("/large/"):
            self.hub.large[parts[1]] = body
            return self._send(200, b"")
        if path.endswith("/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        if parts[2:3] == ["resolve"]:
            return self._file(f"{parts[0]}/{parts[1]}", parts[3], "/".join(parts[4:]))
        return self._refuse(404, "", "Not found")

    def _readable(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.token is None):
            self._refuse(401 if self.token is None else 404, "RepoNotFound", "Repository not found")
            return None
        if repo.gated:
            self._refuse(403, "GatedRepo", "Access to this model is restricted")
            return None
        return repo

    def _api(self, name: str, rest: list[str], body: bytes) -> None:
        repo = self._readable(name)
        if repo is None:
            return None
        if self.command == "GET":
            commit = self._commit(repo, "/".join(rest[1:]) or "main")
            if commit is None:
                return self._refuse(404, "RevisionNotFound", "Invalid rev id")
            siblings = [self._sibling(file, content) for file, content in commit[1].items()]
            return self._json({"id": name, "sha": commit[0], "private": repo.private, "siblings": siblings})
        if self.token is None or not name.startswith("me/"):
            return self._refuse(403, "", "You don't have the rights to write here")
        if rest[0] == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(_LARGE) else "regular",
                    "shouldIgnore": file["path"] in repo.ignored,
                }
                for file in json.loads(body)["files"]
            ]
            return self._json({"files": modes})
        files = dict(repo.files)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit") not in (None, repo.commits[-1][0]):
                return self._refuse(412, "", "A commit has happened since. Please refresh and try again.")
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            if line["key"] in ("file", "lfsFile"):
                self.hub.uploaded.append(value["path"])
        sha = repo.commit(files)
        return self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha})

    def _commit(self, repo: Repo, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return repo.commits[-1]
        return next((commit for commit in repo.commits if commit[0] == revision), None)

    def _sibling(self, file: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"rfilename": file, "size": len(content), "blobId": "0" * 40}
        if file.endswith(_LARGE):
            entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}
        return entry

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization', 'me')}/{asked['name']}"
        if self.token is None or not name.startswith("me/"):
            return self._refuse(403, "", "You don't have the rights to create a model here")
        private = asked.get("private") is True or asked.get("visibility") == "private"
        self.hub.put(name, {".gitattributes": b"*.onnx filter=lfs\n"}, private=private)
        return self._json({"url": f"{self.hub.url}/{name}"})

    def _validate(self, card: str) -> None:
        try:
            loaded = yaml.safe_load(card.split("---\n")[1])
        except (yaml.YAMLError, IndexError) as error:
            return self._json({"errors": [{"message": str(error)}]}, 400)
        empty = [] if isinstance(loaded, dict) else [{"message": "empty or missing yaml metadata in repo card"}]
        return self._json({"errors": [], "warnings": empty})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {**entry, "actions": {"upload": {"href": f"{self.hub.url}/large/{entry['oid']}"}}}
            for entry in asked["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _file(self, name: str, revision: str, file: str) -> None:
        repo = self._readable(name)
        if repo is None:
            return None
        commit = self._commit(repo, revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound", "Invalid rev id")
        if file not in commit[1]:
            return self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit[0]})
        content = self.hub.sending(file, commit[1][file]) if self.command == "GET" else commit[1][file]
        if content is None:
            self.close_connection = True
            return None
        etag = hashlib.sha256(commit[1][file]).hexdigest()
        return self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit[0]})

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        said = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        echoed = f"{message} (you sent {self.token})"  # a careless server, whose words end in an error message
        self._send(status, json.dumps({"error": echoed}).encode(), {"Content-Type": "application/json", **said})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
