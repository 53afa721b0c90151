"""Models of the hub, against a hub of our own: an HTTP server that answers as the hub's interface does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from bam_core.errors import InvalidInput
from infra.hub_models import digest, is_hub_id, licence_of, locate

COMMIT, OLD = "a" * 40, "b" * 40
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "README.md": b"---\nlicense: apache-2.0\n---\n# A model\n",
    "modeling_x.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
    "original/model.safetensors": b"other weights",
}


class Hub:
    """What one server knows. models: id -> revision -> (commit, files). private: ids that need the token."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, tuple[str, dict[str, bytes]]]] = {}
        self.private: set[str] = set()
        self.fetched: list[str] = []
        self.tokens: set[str | None] = set()

    def answer(self, path: str, token: str | None) -> tuple[int, dict[str, str], bytes]:
        self.tokens.add(token)
        parts = [unquote(part) for part in urlsplit(path).path.strip("/").split("/")]
        is_api = parts[:2] == ["api", "models"]
        name, rest = "/".join(parts[2:4] if is_api else parts[:2]), parts[4:] if is_api else parts[2:]
        if name not in self.models or (name in self.private and token != "Bearer hf_secret"):
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in self.models[name]:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        commit, files = self.models[name][revision]
        if is_api and rest[:1] == ["tree"]:
            rows = [{"type": "file", "path": file, "size": len(data), "oid": "0" * 40} for file, data in files.items()]
            return 200, {"Content-Type": "application/json"}, json.dumps(rows).encode()
        if is_api:
            siblings = [{"rfilename": file} for file in files]
            found = {"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
            return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()
        file = "/".join(rest[2:])
        if file not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        self.fetched.append(file)
        etag = f'"{hashlib.sha256(files[file]).hexdigest()}"'
        return 200, {"X-Repo-Commit": commit, "ETag": etag}, files[file]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The library's endpoint and cache are constants of its modules, read when it is imported."""
    from huggingface_hub import constants

    served = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = served.answer(self.path, self.headers.get("Authorization"))
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # as tests are otherwise
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.chdir(tmp_path)
    served.models["team/small"] = dict.fromkeys(("main", COMMIT), (COMMIT, FILES))
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_model_is_fetched_at_a_commit_without_code_and_pickles(hub: Hub) -> None:
    found = locate("team/small")
    assert (found.commit, found.shown) == (COMMIT, f"team/small@{'a' * 12}")
    there = {path.name for path in found.folder.iterdir()}
    assert there == {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert (found.folder / "model.safetensors").read_bytes() == b"weights"
    assert not {"modeling_x.py", "pytorch_model.bin", "original/model.safetensors"} & set(hub.fetched)
    assert digest("team/small") == COMMIT
    assert digest("team/small", COMMIT) == COMMIT
    assert licence_of(found.folder) == "apache-2.0"


def test_a_branch_that_moves_is_another_model(hub: Hub) -> None:
    hub.models["team/small"] |= dict.fromkeys(("v1", OLD), (OLD, FILES | {"model.safetensors": b"older"}))
    assert locate("team/small", "v1").commit == OLD
    assert digest("team/small", "v1") == OLD
    hub.models["team/small"]["v1"] = (COMMIT, FILES)
    assert digest("team/small", "v1") == COMMIT


def test_offline_the_cache_is_read_and_what_is_not_in_it_is_an_error(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    locate("team/small")
    hub.fetched.clear()
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert (locate("team/small").commit, digest("team/small"), hub.fetched) == (COMMIT, COMMIT, [])
    with pytest.raises(InvalidInput) as caught:
        locate("team/other")
    [problem] = caught.value.problems
    assert "is not in the hub's cache" in problem.expected
    assert "hf download team/other" in problem.remedy


def test_a_private_model_needs_the_token_of_the_environment(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.private.add("team/small")
    with pytest.raises(InvalidInput) as caught:
        locate("team/small")
    assert "HF_TOKEN" in caught.value.problems[0].remedy
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert locate("team/small").commit == COMMIT
    with pytest.raises(InvalidInput) as caught:
        locate("team/unknown")
    assert "hf_secret" not in str(caught.value)


@pytest.mark.parametrize("look", [locate, digest])
def test_what_the_hub_does_not_have(look: Any, hub: Hub) -> None:
    with pytest.raises(InvalidInput, match="has no revision 'v9'"):
        look("team/small", "v9")
    with pytest.raises(InvalidInput, match="is no folder here, and http://127"):
        look("team/smal")
    with pytest.raises(InvalidInput, match="is no folder here and no id of the hub"):
        look("./team/small")


def test_a_model_that_is_a_pickle_is_refused_with_the_way_to_convert_it(hub: Hub) -> None:
    files = {"config.json": b"{}", "pytorch_model-00001-of-00002.bin": b"", "pytorch_model-00002-of-00002.bin": b""}
    hub.models["team/old"] = dict.fromkeys(("main", OLD), (OLD, files))
    with pytest.raises(InvalidInput) as caught:
        locate("team/old")
    [problem] = caught.value.problems
    assert "pytorch_model-00001-of-00002.bin and 1 more" in problem.expected
    assert "from_pretrained('team/old').save_pretrained" in problem.remedy


def test_a_hub_that_cannot_be_reached(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    dead = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", dead)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", dead + "/{repo_id}/resolve/{revision}/{filename}")
    for look in (locate, digest):
        with pytest.raises(InvalidInput) as caught:
            look("team/small")
        assert "hf download team/small" in caught.value.problems[0].remedy


def test_a_folder_is_known_by_its_files_and_not_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("team/small", "elsewhere"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for file in ("config.json", "model.safetensors", "README.md", "notes.txt"):
            (folder / file).write_bytes(FILES.get(file, b""))
    assert not is_hub_id("team/small"), "a folder of that name comes first"
    assert locate("team/small").commit is None
    assert digest("team/small") == digest(str(tmp_path / "elsewhere"))
    for name in ("README.md", "record.json", "lease.json"):  # as an artifact of a store has
        (tmp_path / "elsewhere" / name).write_text("other")
    assert digest("team/small") == digest("elsewhere")
    (tmp_path / "elsewhere" / "model.safetensors").write_bytes(b"weighty")
    assert digest("team/small") != digest("elsewhere")
    (tmp_path / "empty").mkdir()
    for look, source, words in (
        (digest, "empty", "has no file of a model"),
        (locate, "team/small/config.json", "is a file"),
    ):
        with pytest.raises(InvalidInput, match=words):
            look(source)
    with pytest.raises(InvalidInput, match="revision"):
        locate("team/small", "main")
