"""A stand-in for the Hugging Face Hub on loopback: repositories of files by commit, and a list of what was fetched."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

JSON = {"Content-Type": "application/json"}


@dataclass
class Hub:
    """Folders by repository and commit, and names of commits.

    Args:
        commits: the folder of each (repository, commit); a commit has 40 hexadecimal digits.
        refs: the commit of each (repository, branch or tag).
        failing: repositories that answer with this status and error code instead.
        asked: the files that were fetched, with their repository, in order.
        slow: names of files that come to a halt in the middle.
    """

    commits: dict[tuple[str, str], Path] = field(default_factory=dict)
    refs: dict[tuple[str, str], str] = field(default_factory=dict)
    failing: dict[str, tuple[int, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    url: str = ""

    def add(self, name: str, folder: Path, *revisions: str) -> str:
        """Publish the files in ``folder`` as a new commit that ``revisions`` lead to. Returns the commit."""
        commit = hashlib.sha1(f"{name} {len(self.commits)}".encode()).hexdigest()
        self.commits[name, commit] = folder
        self.refs |= {(name, revision): commit for revision in revisions}
        return commit

    def folder(self, name: str, revision: str) -> tuple[str, Path] | None:
        """Commit and files of a revision, which may be a commit itself."""
        commit = self.refs.get((name, revision), revision)
        return None if (name, commit) not in self.commits else (commit, self.commits[name, commit])


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub without repositories; fill it while it runs."""
    hub, ended = Hub(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def log_message(self, *args: object) -> None:
            """Nothing on standard error."""

        def answer(self, with_body: bool) -> None:
            status, headers, body = respond(hub, self.path.partition("?")[0], with_body)
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if with_body and Path(self.path).name in hub.slow:
                self.wfile.write(body[: len(body) // 2])
                ended.wait(60)
            elif with_body:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


def respond(hub: Hub, path: str, fetched: bool) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body for a path of the Hub's own interface."""
    parts = path.strip("/").split("/")
    api = parts[:2] == ["api", "models"]
    if len(parts) < (6 if api else 5):
        return 404, {}, b""
    owner, repository, action, *rest = parts[2:] if api else parts
    name = f"{owner}/{repository}"
    if name in hub.failing:
        status, code = hub.failing[name]
        return status, {"X-Error-Code": code}, b""
    if not any(known == name for known, _ in hub.commits):
        return 404, {"X-Error-Code": "RepoNotFound"}, b""
    found = hub.folder(name, rest[0])
    if found is None:
        return 404, {"X-Error-Code": "RevisionNotFound"}, b""
    commit, folder = found
    if not api:
        return _file(hub, name, commit, folder, "/".join(rest[1:]), fetched)
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    if action == "tree":
        listed = [{"type": "file", "path": file, "size": size, "oid": file} for file, size in sizes.items()]
        return 200, JSON, json.dumps(listed).encode()
    facts = {"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in sizes]}
    return 200, JSON, json.dumps(facts).encode()


def _file(
    hub: Hub, name: str, commit: str, folder: Path, file: str, fetched: bool
) -> tuple[int, dict[str, str], bytes]:
    path = folder / file
    if not path.is_file():
        return 404, {"X-Error-Code": "EntryNotFound"}, b""
    if fetched:
        hub.asked.append(f"{name}/{file}")
    body = path.read_bytes()
    return 200, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}, body
