"""`bam serve`: who may ask, what is refused before a model is opened, and the command as it is typed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bam_core.checkpoint import write_model
from bam_core.graph.record import Record, artifact_digest
from infra import openai_server
from infra.store import ArtifactStore
from tests.security.sockets import family, listeners
from tests.task_kit import MIXTURE, TOKENIZER, tiny_model

KEY = "c" * 64
HAS_SERVE = all(openai_server.find_spec(name) for name in openai_server.NEEDED)


@pytest.fixture
def store(here: Path) -> ArtifactStore:
    """Holds `train.bam`, a mixture, and `seed`, a model without a tokenizer."""
    (here / "tokenizer.json").write_text(TOKENIZER)
    store = ArtifactStore(str(here / "bam_store"))
    for stage, tokenizer in (("train.bam", here / "tokenizer.json"), ("seed", None)):
        with store.scratch(stage, KEY) as out:
            tensors = ((name, tensor.float()) for name, tensor in tiny_model(MIXTURE).state_dict().items())
            write_model(out, MIXTURE, tensors, tokenizer=tokenizer, card="")
            outputs = store.hash_outputs(out)
            store.commit(out, Record(stage, KEY, {}, {}, outputs, artifact_digest(outputs), {}, {}, 1.0, 2.0, 1))
    return store


def test_without_its_libraries_the_extra_is_named(bam, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_server, "find_spec", lambda name: None)
    ended = bam("serve", "seed")
    assert (ended.status, ended.out) == (2, "")
    assert "pip install -c constraints.txt -e '.[serve]'" in ended.err


def test_what_others_reach_wants_a_token(bam, store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_server, "find_spec", lambda name: name)
    ended = bam("serve", "train.bam", "--host", "0.0.0.0")
    assert ended.status == 2
    assert "BAM_SERVE_TOKEN" in ended.err
    ended = bam("serve", "nowhere", "--host", "0.0.0.0", "--port", "0", "--without-token")  # ends at the model
    assert (ended.status, ended.out) == (2, "")
    assert "without a token: whoever reaches it can use the model" in ended.err
    monkeypatch.setenv("BAM_SERVE_TOKEN", "a secret")
    ended = bam("serve", "nowhere", "--host", "0.0.0.0", "--port", "0")
    assert "without a token" not in ended.err
    assert "not encrypted" in ended.err
    assert "a secret" not in ended.err
    assert "no-host.invalid" in bam("serve", "seed", "--host", "no-host.invalid").err


@pytest.mark.skipif(not HAS_SERVE, reason="the extra serve is not installed")
def test_a_model_without_a_tokenizer_and_a_port_that_is_taken(bam, store) -> None:
    ended = bam("serve", "seed", "--port", "0")
    assert (ended.status, ended.out) == (2, "")
    assert "has no tokenizer" in ended.err
    with openai_server.bound("127.0.0.1", 0) as listener:
        listener.listen()
        ended = bam("serve", "train.bam", "--port", str(listener.getsockname()[1]))
    assert ended.status == 2
    assert "give another --port" in ended.err


@pytest.mark.long
@pytest.mark.skipif(not HAS_SERVE, reason="the extra serve is not installed")
def test_the_command_serves_on_loopback_until_ctrl_c(store) -> None:
    openai = pytest.importorskip("openai")
    words = [Path(sys.executable).with_name("bam"), "serve", "train.bam", "--port", "0", "--json"]
    environment = os.environ | {"BAM_SERVE_TOKEN": "a secret"}
    with subprocess.Popen(
        [*words, "--store", store.uri], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        text = ""
        while not text.rstrip().endswith("}"):
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            text += line
        serving = json.loads(text)
        assert serving["wants_token"]
        with openai.OpenAI(base_url=serving["url"], api_key="a secret", max_retries=0) as client:
            asked = {"model": "train.bam", "max_tokens": 4}
            assert client.completions.create(prompt="the court", **asked).usage.completion_tokens <= 4
            messages = [{"role": "user", "content": "the court"}]
            assert list(client.chat.completions.create(messages=messages, stream=True, **asked))
        found = listeners(family(process.pid))
        assert found
        assert all(one.is_loopback for one in found)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
