"""The Hugging Face hub as far as the pages use it, which cannot be reached from a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.checkpoints import test_hub

OPENMIND = "AnonRes/ResEncL-OpenMind-MAE"


@contextmanager
def hub_with(checkpoint: Path) -> Iterator[str]:
    """A server that offers this file as OpenMind's checkpoint; gives its address."""
    files = {"README.md": b"card", "checkpoint_final.pth": checkpoint.read_bytes()}
    handler = type("ThisHub", (test_hub.Hub,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(test_hub.REPOSITORIES, OPENMIND, {test_hub.COMMIT: files})
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()


def settings(address: str, cache: Path) -> dict[str, str]:
    """Environment variables that send the hub's client there."""
    return {
        "HF_ENDPOINT": address,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1,localhost",
    }
