"""Checkpoints from the Hugging Face hub.

The hub itself cannot be reached from a test. A web server on this machine plays the few of its addresses that are used,
and the hub's own client talks to it, in a process of its own because it reads its settings when it is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from nnssl_mae.checkpoints.hub import fetch
from nnssl_mae.checkpoints.locate import choose
from nnssl_mae.errors import UserError

COMMIT, EARLIER = "a" * 40, "b" * 40
REPOSITORIES: dict[str, dict[str, dict[str, bytes]]] = {
    "AnonRes/ResEncL-OpenMind-MAE": {
        COMMIT: {
            "README.md": b"card",
            "adaptation_plan.json": b'{"plan": "new"}',
            "checkpoint_final.pth": b"new weights",
            "huge_other_file.bin": b"never fetched",
        },
        EARLIER: {"checkpoint_final.pth": b"old weights"},
    },
    "us/shared": {COMMIT: {"model.safetensors": b"shared", "adaptation_plan.json": b"{}"}},
    "them/amaes": {COMMIT: {"weights/unet_b.ckpt": b"amaes", "README.md": b""}},
    "them/two": {COMMIT: {"b.ckpt": b"", "xl.ckpt": b""}},
    "them/none": {COMMIT: {"README.md": b""}},
}
REVISIONS = {"main": COMMIT, "v0": EARLIER, COMMIT: COMMIT, EARLIER: EARLIER}


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.answer()

    def answer(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        kind, _, rest = path.removeprefix("api/models/").partition("/resolve/" if "/resolve/" in path else "/tree/")
        if "/tree/" not in path and "/resolve/" not in path:
            kind, _, rest = path.removeprefix("api/models/").partition("/revision/")
        if kind == "us/gated":
            return self.refuse(403, "GatedRepo")
        if kind == "us/broken":
            return self.refuse(500, "")
        if kind not in REPOSITORIES:
            return self.refuse(401, "RepoNotFound")
        revision, _, name = rest.partition("/")
        commit = REVISIONS.get(revision or "main")
        if commit not in REPOSITORIES[kind]:
            return self.refuse(404, "RevisionNotFound")
        files = REPOSITORIES[kind][commit]
        if "/resolve/" not in path:
            return self.send(commit, json.dumps(self.listing(path, commit, files)).encode(), "application/json")
        if name not in files:
            return self.refuse(404, "EntryNotFound", commit)
        return self.send(commit, files[name], "application/octet-stream")

    def listing(self, path: str, commit: str, files: dict[str, bytes]) -> Any:
        if "/tree/" in path:
            return [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files.items()]
        return {"id": "x/y", "sha": commit, "siblings": [{"rfilename": name} for name in files]}

    def send(self, commit: str, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, commit: str = "") -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """Its address, and what was downloaded from it."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("ThisHub", (Hub,), {"asked": asked}))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


SCRIPT = """
import json, sys, time
from nnssl_mae.checkpoints.locate import locate
time.sleep = lambda seconds: None  # the client waits longer and longer before it gives up
from nnssl_mae.errors import UserError
for where in sys.argv[1:]:
    try:
        source = locate(where)
        plan = None if source.plan_file is None else source.plan_beside()
        print(json.dumps([source.file.read_text(), source.label, source.shown, plan]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def located(address: str, cache: Path, *where: str, **more: str) -> Any:
    """What the client gets: content, label, shown and plan of each file, or the sentence."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING_FACE"))}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "5", "NO_PROXY": "127.0.0.1"}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, *where], env=environment | more, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    return answers[0] if len(where) == 1 else answers


def test_only_weights_and_plan_are_fetched_and_the_label_names_the_commit(hub: Any, tmp_path: Path) -> None:
    address, asked = hub
    name = "hf://AnonRes/ResEncL-OpenMind-MAE"
    found = located(address, tmp_path, name)
    assert found == ["new weights", f"{name}@{COMMIT}", f"{name}/checkpoint_final.pth", {"plan": "new"}]
    fetched = {path.rsplit("/", 1)[-1] for path in asked}
    assert fetched == {"checkpoint_final.pth", "adaptation_plan.json"}


def test_files_revisions_and_names_that_are_not_usual(hub: Any, tmp_path: Path) -> None:
    address, _ = hub
    found = located(
        address,
        tmp_path,
        "hf://AnonRes/ResEncL-OpenMind-MAE@v0",
        f"hf://AnonRes/ResEncL-OpenMind-MAE/checkpoint_final.pth@{EARLIER}",
        "hf://us/shared",
        "hf://them/amaes",
        "hf:/them/amaes/weights/unet_b.ckpt",
    )
    assert [each[0] for each in found] == ["old weights", "old weights", "shared", "amaes", "amaes"]
    assert [each[1].rsplit("@")[-1] for each in found] == [EARLIER, EARLIER, COMMIT, COMMIT, COMMIT]
    # The plan of the first repository belongs to another revision: it is not taken.
    assert [each[3] for each in found] == [None, None, {}, None, None]


def test_what_was_fetched_once_is_read_without_a_network(hub: Any, tmp_path: Path) -> None:
    address, asked = hub
    names = ("hf://us/shared", "hf://them/amaes/weights/unet_b.ckpt")
    online = located(address, tmp_path, *names)
    asked.clear()
    assert located(address, tmp_path, *names, HF_HUB_OFFLINE="1") == online
    assert asked == []
    assert located("http://127.0.0.1:9", tmp_path, *names) == online


def test_without_a_network_and_not_in_the_cache(hub: Any, tmp_path: Path) -> None:
    offline = located(hub[0], tmp_path, "hf://us/shared", HF_HUB_OFFLINE="1")
    assert offline.startswith("hf://us/shared (")
    assert "not in the hub's cache and HF_HUB_OFFLINE is set" in offline
    unreachable = located("http://127.0.0.1:9", tmp_path, "hf://us/shared")
    assert "the hub cannot be reached or fails; check the network" in unreachable


def test_what_the_hub_refuses_gets_a_sentence(hub: Any, tmp_path: Path) -> None:
    sentences = {
        "hf://nobody/nothing": "not on the hub, or it is private; .*`hf auth login`",
        "hf://us/gated": "is gated: accept its terms on https://huggingface.co/us/gated",
        "hf://us/shared@v9": "the repository has no revision 'v9'",
        "hf://us/shared/other.pth": "has no file 'other.pth'",
        "hf://them/two": r"several checkpoints (b.ckpt, xl.ckpt); say which: hf://them/two/b.ckpt",
        "hf://them/none": "holds no checkpoint",
        "hf://us/broken": "the hub cannot be reached or fails",
        "hf://us/-x-": "not a name that the hub allows",
    }
    answers = located(hub[0], tmp_path, *sentences)
    for (name, sentence), answer in zip(sentences.items(), answers, strict=True):
        assert isinstance(answer, str), name
        assert all(part in answer for part in sentence.split(".*")), (name, answer)
        assert "Traceback" not in answer
        assert "\n" not in answer


@pytest.mark.parametrize("where", ["hf://", "hf://name", "hf://a/b@", "hf:/a", "https://huggingface.co/a/b"])
def test_names_of_another_form_say_the_form(where: str) -> None:
    with pytest.raises(UserError, match="write hf://owner/name"):
        fetch(where, ("checkpoint_final.pth",), "adaptation_plan.json", choose)
