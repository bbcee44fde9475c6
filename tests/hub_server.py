"""A server with those endpoints of the Hugging Face hub that huggingface_hub calls for a model repository.

It keeps commits in memory. Tests start it on a free port, and give its address to the real client as HF_ENDPOINT.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_test"


class Hub(ThreadingHTTPServer):
    """The repositories of the server, and the requests that it received.

    pause_after: number of requests for parts of a file after which the server no longer responds to such requests.
    `paused` is then set. status: if set, the response to each request.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits = {}  # (repository, commit): {path: bytes}
        self.branches = {}  # (repository, branch): commit
        self.private = set()
        self.objects = {}  # by SHA-256
        self.messages = []
        self.requests = []  # (method, path, range)
        self.pause_after, self.paused, self.resumed = None, threading.Event(), threading.Event()
        self.status = None
        self.lock = threading.Lock()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        """Ignore a client that a test has killed."""

    def commit(self, repository, files, branch="main"):
        """Add a commit with these files to the branch, and return its id."""
        parent = self.branches.get((repository, branch))
        content = {**self.commits.get((repository, parent), {}), **files}
        digests = sorted((name, hashlib.sha1(data).hexdigest()) for name, data in content.items())
        text = f"{repository}{branch}{parent}{digests}"
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[repository, oid] = content
        self.branches[repository, branch] = oid
        return oid

    def files(self, repository, revision="main"):
        """The files of a branch or commit; None if there is no such revision."""
        return self.commits.get((repository, self.branches.get((repository, revision), revision)))

    def transferred(self, part):
        """The ranges of the files whose path contains `part`, in the order of the requests."""
        return [
            asked for method, path, asked in self.requests if method == "GET" and "/resolve/" in path and part in path
        ]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def reply(self, status, body=b"", **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def handle_request(self):
        hub = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        with hub.lock:
            hub.requests.append((self.command, path, self.headers.get("Range")))
        if hub.status is not None:
            return self.reply(hub.status)
        is_known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if self.command == "PUT" and (match := re.fullmatch(r"/objects/([0-9a-f]{64})", path)):
            assert hashlib.sha256(body).hexdigest() == match[1]
            hub.objects[match[1]] = body
            return self.reply(200)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.send_file(*match.groups(), is_known)
        if path == "/api/validate-yaml":
            return self.reply(200, {"warnings": [], "errors": []})
        if self.command == "POST" and not path.endswith(f"/paths-info/{path.rsplit('/', 1)[-1]}") and not is_known:
            return self.reply(401, X_Error_Message="Invalid username or password.")
        if path == "/api/repos/create":
            asked = json.loads(body)
            repository = f"{asked['organization']}/{asked['name']}"
            if (repository, "main") in hub.branches:
                return self.reply(409, {"error": "it exists", "url": f"{hub.endpoint}/{repository}"})
            if asked.get("visibility") == "private" or asked.get("private"):
                hub.private.add(repository)
            hub.commit(repository, {".gitattributes": b""})
            return self.reply(200, {"url": f"{hub.endpoint}/{repository}"})
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self.send_uploads(json.loads(body))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/([a-z-]+)/(.+))?", path):
            return self.model(match[1], match[2], match[3], body, is_known)
        return self.reply(404)

    do_GET = do_POST = do_PUT = do_HEAD = handle_request  # noqa: N815 - the names of http.server

    def model(self, repository, action, revision, body, is_known):
        hub = self.server
        if (repository, "main") not in hub.branches or (repository in hub.private and not is_known):
            return self.reply(404 if is_known else 401, X_Error_Code="RepoNotFound")
        if action == "branch":
            if (repository, revision) in hub.branches:
                return self.reply(409, {"error": "it exists"})
            hub.branches[repository, revision] = hub.branches[repository, "main"]
            return self.reply(200)
        files = hub.files(repository, revision or "main")
        if files is None:
            return self.reply(404, X_Error_Code="RevisionNotFound")
        if action in (None, "revision"):
            oid = hub.branches.get((repository, revision or "main"), revision)
            return self.reply(200, {"id": repository, "sha": oid, "siblings": [{"rfilename": name} for name in files]})
        if action == "paths-info":
            paths = parse_qs(body.decode())["paths"]
            found = [
                {"type": "file", "path": path, "size": len(files[path]), "oid": hashlib.sha1(files[path]).hexdigest()}
                for path in paths
                if path in files
            ]
            return self.reply(200, found)
        if action == "preupload":
            modes = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith((".onnx", ".npz", ".safetensors")) else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            return self.reply(200, {"files": modes})
        if action == "commit":
            header, *operations = map(json.loads, body.splitlines())
            added = {}
            for operation in operations:
                value = operation["value"]
                is_large = operation["key"] == "lfsFile"
                added[value["path"]] = hub.objects[value["oid"]] if is_large else base64.b64decode(value["content"])
            oid = hub.commit(repository, added, revision)
            hub.messages.append(header["value"]["summary"])
            return self.reply(200, {"commitUrl": f"{hub.endpoint}/{repository}/commit/{oid}", "commitOid": oid})
        return self.reply(404)

    def send_uploads(self, asked):
        actions = []
        for one in asked["objects"]:
            upload = {"upload": {"href": f"{self.server.endpoint}/objects/{one['oid']}"}}
            present = one["oid"] in self.server.objects
            actions.append({"oid": one["oid"], "size": one["size"], **({} if present else {"actions": upload})})
        return self.reply(200, {"transfer": "basic", "objects": actions})

    def send_file(self, repository, revision, name, is_known):
        hub = self.server
        if repository in hub.private and not is_known:
            return self.reply(401, X_Error_Code="RepoNotFound")
        files = hub.files(repository, revision)
        if files is None:
            is_known_name = any(known == repository for known, _ in hub.branches)
            return self.reply(404, X_Error_Code="RevisionNotFound" if is_known_name else "RepoNotFound")
        commit = hub.branches.get((repository, revision), revision)
        data = files.get(name)
        if data is None:
            return self.reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        if hub.pause_after is not None:
            with hub.lock:
                hub.pause_after -= 1
            if hub.pause_after < 0:
                hub.paused.set()
                hub.resumed.wait()
        if asked := re.fullmatch(r"bytes=(\d+)-(\d+)?", self.headers.get("Range") or ""):
            start, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            if start >= len(data):
                return self.reply(416)
            return self.reply(206, data[start : end + 1], Content_Range=f"bytes {start}-{end}/{len(data)}")
        return self.reply(200, data, ETag=f'"{hashlib.sha256(data).hexdigest()}"', X_Repo_Commit=commit)
