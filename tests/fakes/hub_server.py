"""A model hub on this machine: serves folders under hub ids, as far as the hub's real client asks."""

import hashlib
import json
import re
from collections import defaultdict
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.fakes.local_server import LocalServer

NEWEST = "main"


class Hub(LocalServer):
    "Serves models on 127.0.0.1 while it is open; `requests` tells what was asked for."

    def __init__(self) -> None:
        self.folders: dict[tuple[str, str], Path] = {}  # hub id and commit -> folder
        self.newest: dict[str, str] = {}  # hub id -> commit of its branch `main`
        self.requests: list[tuple[str, str]] = []  # method and path
        self.ranges: list[str] = []  # files that were asked for from somewhere in their middle
        self.cut: str | None = None  # files whose name ends so are cut short

    def add(self, hub_id: str, commit: str, folder: Path) -> None:
        "Serve a folder as a commit of a model; the last one added is the newest."
        self.folders[hub_id, commit] = folder
        self.newest[hub_id] = commit

    def make_handler(self) -> type["HubHandler"]:
        return type("Handler", (HubHandler,), {"hub": self})

    def fetched(self) -> dict[tuple[str, str], set[str]]:
        "Files that were downloaded, for each hub id and revision in the addresses."
        found = defaultdict(set)
        for method, path in self.requests:
            if method == "GET" and (match := RESOLVE.fullmatch(path)):
                found[match["id"], match["revision"]].add(match["file"])
        return dict(found)


API = re.compile(r"/api/models/(?P<id>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?")
TREE = re.compile(r"/api/models/(?P<id>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)")
RESOLVE = re.compile(r"/(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


class HubHandler(BaseHTTPRequestHandler):
    "Answers as https://huggingface.co does: a model's list of files, and the files."

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        asked = API.fullmatch(path) or TREE.fullmatch(path) or RESOLVE.fullmatch(path)
        if not asked or asked["id"] not in self.hub.newest:
            return self.refuse("RepoNotFound", "Repository not found")
        revision = asked["revision"] or NEWEST
        commit = self.hub.newest[asked["id"]] if revision == NEWEST else revision
        folder = self.hub.folders.get((asked["id"], commit))
        if not folder:
            return self.refuse("RevisionNotFound", f"Invalid rev id: {revision}")
        if asked.re is API:
            return self.send_list(asked["id"], commit, folder)
        if asked.re is TREE:
            return self.send_tree(commit, folder)
        if not (folder / asked["file"]).is_file():
            return self.refuse("EntryNotFound", "Entry not found", commit)
        return self.send_file(folder / asked["file"], commit)

    do_HEAD = do_GET

    def refuse(self, code: str, message: str, commit: str | None = None) -> None:
        "Answer that something is not there, and what."
        self.answer(404, b"", {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit})

    def send_list(self, hub_id: str, commit: str, folder: Path) -> None:
        "Answer with the names of a commit's files."
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        about = {"id": hub_id, "modelId": hub_id, "sha": commit, "siblings": [{"rfilename": file} for file in files]}
        self.answer(200, json.dumps(about).encode(), {"Content-Type": "application/json", "X-Repo-Commit": commit})

    def send_tree(self, commit: str, folder: Path) -> None:
        "Answer with the names, sizes and hashes of a commit's files."
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        tree = [
            {
                "type": "file",
                "path": path.relative_to(folder).as_posix(),
                "size": path.stat().st_size,
                "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
            }
            for path in files
        ]
        self.answer(200, json.dumps(tree).encode(), {"Content-Type": "application/json", "X-Repo-Commit": commit})

    def send_file(self, path: Path, commit: str) -> None:
        "Answer with a file, from the byte asked for, or with half of what was promised."
        content = path.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        status, start = 200, 0
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            self.hub.ranges.append(path.name)
            status, start = 206, int(asked[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        n_sent = len(content) - start
        if self.hub.cut and path.name.endswith(self.hub.cut) and self.command == "GET":
            n_sent //= 2
        self.answer(status, content[start:], headers, n_sent)

    def answer(self, status: int, body: bytes, headers: dict[str, str | None], n_sent: int | None = None) -> None:
        "Promise the whole body, and send it or its first bytes."
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:n_sent])
            self.close_connection = n_sent is not None and n_sent < len(body)

    def log_message(self, *_: object) -> None:
        "Keep the tests' output clean."
