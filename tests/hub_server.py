"""The part of the hub's HTTP interface that `huggingface_hub` needs to create, fill and read repositories.

Repositories live in memory: branch -> path -> bytes, one commit per upload. Paths are asked with the privileges of the
bearer token; a private repository is not there for others. Nothing here knows adapters.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_writer"
Tree = dict[str, bytes]


@dataclass
class Repository:
    private: bool = False
    heads: dict[str, str] = field(default_factory=dict)  # branch -> commit
    commits: dict[str, Tree] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, tree: Tree, message: str) -> str:
        content = repr((len(self.commits), sorted(tree))).encode()
        oid = hashlib.sha1(content).hexdigest()
        self.commits[oid] = tree
        self.heads[branch] = oid
        self.messages.append(message)
        return oid

    def tree(self, branch: str = "main") -> Tree:
        return self.commits[self.heads[branch]]


@dataclass
class Hub:
    """What the server holds, and which requests it saw."""

    lfs: bool = True
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)  # sha256 -> content
    requests: list[tuple[str, str]] = field(default_factory=list)
    endpoint: str = ""


class Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(code)
        self.status, self.code, self.message = status, code, message


@contextmanager
def serve(lfs: bool = True) -> Iterator[Hub]:
    """Run a hub on a free port of this machine for the duration of a `with`."""
    hub = Hub(lfs)

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
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

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        self.body = self._read_body()
        try:
            status, headers, content = self._route(path.strip("/").split("/"))
        except Refused as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            status, content = refusal.status, json.dumps({"error": refusal.message or refusal.code}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    @property
    def _writer(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _route(self, parts: list[str]) -> tuple[int, dict[str, str], bytes]:
        match (self.command, *parts):
            case ("POST", "api", "repos", "create"):
                return self._create()
            case ("POST", "api", "validate-yaml"):
                return _json({"errors": [], "warnings": []})
            case ("POST", "api", "models", user, name, "branch", branch):
                return self._branch(self._repository(f"{user}/{name}", write=True), branch)
            case ("POST", "api", "models", user, name, "preupload", revision):
                repository = self._repository(f"{user}/{name}", write=True)
                self._commit_of(repository, revision)
                return self._preupload()
            case ("POST", user, name, "info", "lfs", "objects", "batch"):
                self._repository(f"{user}/{name.removesuffix('.git')}", write=True)
                return self._lfs_batch()
            case ("PUT", "lfs", oid):
                if hashlib.sha256(self.body).hexdigest() != oid:
                    raise Refused(422, message="content is not what its hash says")
                self.hub.large[oid] = self.body
                return _json({})
            case ("POST", "api", "models", user, name, "commit", revision):
                return self._commit(f"{user}/{name}", revision)
            case ("GET", "api", "models", user, name, "tree", revision, *_):
                return self._tree(self._repository(f"{user}/{name}"), revision)
            case ("GET", "api", "models", user, name, *rest):
                return self._info(f"{user}/{name}", rest[1] if rest else "main")
            case ("GET" | "HEAD", user, name, "resolve", revision, *path):
                return self._file(self._repository(f"{user}/{name}"), revision, "/".join(path))
        raise Refused(404, message=f"no such address: {parts}")

    def _repository(self, repo_id: str, write: bool = False) -> Repository:
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and not self._writer):
            raise Refused(401 if not self._writer else 404, "RepoNotFound", "Repository not found")
        if write and not self._writer:
            raise Refused(401, message="Invalid username or password.")
        return repository

    def _commit_of(self, repository: Repository, revision: str) -> str:
        commit = repository.heads.get(revision, revision)
        if commit not in repository.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _create(self) -> tuple[int, dict[str, str], bytes]:
        if not self._writer:
            raise Refused(401, message="Invalid username or password.")
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or 'me'}/{asked['name']}"
        answer = {"url": f"{self.hub.endpoint}/{repo_id}", "id": repo_id}
        if repo_id in self.hub.repositories:
            return 409, {"Content-Type": "application/json"}, json.dumps(answer).encode()
        repository = self.hub.repositories[repo_id] = Repository(private=asked.get("visibility") == "private")
        repository.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return _json(answer)

    def _branch(self, repository: Repository, branch: str) -> tuple[int, dict[str, str], bytes]:
        if branch in repository.heads:
            raise Refused(409, message="Reference already exists")
        repository.heads[branch] = repository.heads["main"]
        return _json({})

    def _preupload(self) -> tuple[int, dict[str, str], bytes]:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if self.hub.lfs and file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        return _json({"files": files})

    def _lfs_batch(self) -> tuple[int, dict[str, str], bytes]:
        objects: list[dict[str, Any]] = []
        for wanted in json.loads(self.body)["objects"]:
            found = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.large:
                found["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs/{wanted['oid']}", "header": {}}}
            objects.append(found)
        return _json({"transfer": "basic", "objects": objects})

    def _commit(self, repo_id: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        repository = self._repository(repo_id, write=True)
        tree = dict(repository.commits[self._commit_of(repository, revision)])
        message = ""
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                message = "\n".join(filter(None, (value["summary"], value["description"])))
            elif operation["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                tree[value["path"]] = self.hub.large[value["oid"]]
            elif operation["key"] == "deletedFile":
                del tree[value["path"]]
            else:
                raise Refused(400, message=f"unknown operation {operation['key']}")
        oid = repository.commit(revision, tree, message)
        url = f"{self.hub.endpoint}/{repo_id}/commit/{oid}"
        return _json({"success": True, "commitOid": oid, "commitUrl": url, "pullRequestUrl": None, "hookOutput": ""})

    def _tree(self, repository: Repository, revision: str) -> tuple[int, dict[str, str], bytes]:
        tree = repository.commits[self._commit_of(repository, revision)]
        return _json([{"type": "file", "path": p, "size": len(c), "oid": _git_oid(c)} for p, c in tree.items()])

    def _info(self, repo_id: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        repository = self._repository(repo_id)
        commit = self._commit_of(repository, revision)
        siblings = [{"rfilename": path} for path in repository.commits[commit]]
        return _json({"id": repo_id, "sha": commit, "private": repository.private, "siblings": siblings})

    def _file(self, repository: Repository, revision: str, path: str) -> tuple[int, dict[str, str], bytes]:
        commit = self._commit_of(repository, revision)
        headers = {"X-Repo-Commit": commit}
        content = repository.commits[commit].get(path)
        if content is None:
            raise Refused(404, "EntryNotFound", "Entry not found")
        headers["ETag"] = f'"{_git_oid(content)}"'
        if self.headers.get("Range"):
            start = int(self.headers["Range"].removeprefix("bytes=").split("-")[0])
            return (
                206,
                {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"},
                content[start:],
            )
        return 200, headers, content


def _json(value: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
