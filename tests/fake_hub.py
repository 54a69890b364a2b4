"""A model hub on this machine that speaks as much of the Hub's protocol as its own client library asks of it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """``files`` by repository and path; ``sent``: the paths whose content was asked for, in order."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)

    def add(self, name: str, folder: Path) -> None:
        """A repository with the files of a folder."""
        paths = [path for path in folder.rglob("*") if path.is_file()]
        self.files[name] = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path."""
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self._told("/".join(parts[2:4]), what=parts[4] if len(parts) > 4 else "")
        # ORG/NAME/resolve/COMMIT/PATH
        content = self.files.get("/".join(parts[:2]), {}).get("/".join(parts[4:]))
        if content is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        digest = hashlib.sha256(content).hexdigest()
        return 200, {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT}, content

    def _told(self, name: str, what: str) -> tuple[int, dict[str, str], bytes]:
        files = self.files.get(name)
        if files is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        told: object = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]}
        if what == "tree":
            told = [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in files.items()
            ]
        return 200, {"Content-Type": "application/json"}, json.dumps(told).encode()


@contextmanager
def serving(hub: FakeHub) -> Iterator[str]:
    """The address of ``hub`` while it serves."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            status, headers, body = hub.answer(path)
            if self.command == "GET" and "/resolve/" in path:
                hub.sent.append(path.split("/resolve/")[1].partition("/")[2])
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def in_place_of_the_hub(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The Hub's client library asks ``hub``, and keeps what it gets under ``cache``."""
    from huggingface_hub import close_session, constants

    with serving(hub) as address:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        close_session()
        yield
        close_session()
