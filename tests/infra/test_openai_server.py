"""The server of transformers around one model of ours, asked by OpenAI's own client; it is in this process."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from bam_core.checkpoint import load_model, write_model
from bam_core.data.tokenize import Tokenizer
from bam_core.errors import UsageError
from bam_core.nn.generate import generate
from infra import openai_server as server
from tests.task_kit import MIXTURE, TOKENIZER, tiny_model

for needed in server.NEEDED:
    pytest.importorskip(needed, reason="the extra serve is not installed")
openai = pytest.importorskip("openai")
uvicorn = pytest.importorskip("uvicorn")

TOKEN = "a secret of sixteen or more"
PROMPTS = [f"the court held that {n} and {n % 7} is" for n in range(20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of ours, whose attention and FFN have experts: no class of transformers is it."""
    out = tmp_path_factory.mktemp("served")
    (out / "t.json").write_text(TOKENIZER)
    tensors = ((name, tensor.float()) for name, tensor in tiny_model(MIXTURE).state_dict().items())
    write_model(out / "ours", MIXTURE, tensors, tokenizer=out / "t.json", card="")
    return out


@pytest.fixture(scope="module")
def served(folder: Path) -> server.Served:
    from bam_core.hf.export import export_model

    export_model(folder / "ours", folder / "theirs")
    return server.Served(folder / "theirs", ("train.bam@0123456789ab", "train.bam"))


class Running:
    """An application in a thread, on a free port."""

    def __init__(self, app: Any) -> None:
        self._bound = server.bound("127.0.0.1", 0)
        listener = self._bound.__enter__()
        listener.listen(server.BACKLOG)
        self.address = server.address_of(listener)
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]})
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        self._bound.__exit__(None, None, None)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def running(served: server.Served) -> Iterator[Running]:
    found = Running(server.build_app(served, hosts=("localhost", "127.0.0.1")))
    yield found
    found.stop()


@pytest.fixture
def client(running: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{running.address}/v1", api_key="none", max_retries=0, timeout=60) as found:
        yield found


@pytest.fixture(scope="module")
def said(folder: Path) -> Any:
    """What the model itself says after a text, likeliest first, and how many tokens that is."""
    model, tokenizer = load_model(folder / "ours"), Tokenizer.load(folder / "ours/tokenizer.json")

    def after(text: str, n: int) -> tuple[str, int, int]:
        ids = [tokenizer.eos_id, *tokenizer.encode_batch([text])[0]]
        new = generate(model, torch.tensor(ids), n, eos_id=tokenizer.eos_id)
        return tokenizer.decode(new), len(ids), len(new)

    return after


def test_a_completion_is_what_the_model_says(client: Any, said: Any) -> None:
    text, n_prompt, n_new = said(PROMPTS[0], 12)
    found = client.completions.create(model="train.bam", prompt=PROMPTS[0], max_tokens=12, temperature=0)
    assert found.choices[0].text == text
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (n_prompt, n_new)
    assert found.choices[0].finish_reason == "length"
    assert found.model == "train.bam@0123456789ab"
    pieces = list(
        client.completions.create(model="train.bam", prompt=PROMPTS[0], max_tokens=12, temperature=0, stream=True)
    )
    streamed = "".join(piece.choices[0].text for piece in pieces)
    assert text.startswith(streamed)  # bytes that are no character yet are not streamed
    assert pieces[-1].choices[0].finish_reason == "length"
    assert [model.id for model in client.models.list()] == ["train.bam@0123456789ab"]


def test_what_else_the_process_opens_is_as_before(served: server.Served) -> None:
    """An export opened with trust_remote_code must still bring its own code, which `save_pretrained` then carries."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    assert served.model.config.model_type == "bam"
    assert "bam" not in CONFIG_MAPPING


def test_chat_without_a_template_continues_the_messages(client: Any, said: Any) -> None:
    messages = [{"role": "user", "content": "the court"}, {"role": "assistant", "content": "held"}]
    messages += [{"role": "user", "content": "that a sum"}]
    text, *_ = said("the court\nheld\nthat a sum", 10)
    asked = {"model": "train.bam", "messages": messages, "max_tokens": 10, "temperature": 0}
    found = client.chat.completions.create(**asked)
    assert found.choices[0].message.content == text
    pieces = list(client.chat.completions.create(**asked, stream=True))
    assert text.startswith("".join(piece.choices[0].delta.content or "" for piece in pieces))
    assert pieces[0].choices[0].delta.role == "assistant"


def test_a_chat_template_is_used(
    client: Any, said: Any, served: server.Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{{ bos_token }}Question: {{ messages[-1].content }}\nAnswer:"
    monkeypatch.setattr(served.tokenizer, "chat_template", template)
    asked = {"model": "train.bam", "max_tokens": 8, "temperature": 0}
    found = client.chat.completions.create(messages=[{"role": "user", "content": "5 and 8?"}], **asked)
    assert found.choices[0].message.content == said("Question: 5 and 8?\nAnswer:", 8)[0]


def test_twenty_at_once_get_their_own_answers(client: Any, said: Any) -> None:
    def ask(number: int) -> str:
        asked = {"model": "train.bam", "prompt": PROMPTS[number], "max_tokens": 6, "temperature": 0}
        if number % 2:
            return "".join(piece.choices[0].text for piece in client.completions.create(**asked, stream=True))
        return client.completions.create(**asked).choices[0].text

    with ThreadPoolExecutor(20) as threads:
        found = list(threads.map(ask, range(20)))
    for number, text in enumerate(found):
        wanted, *_ = said(PROMPTS[number], 6)
        assert wanted.startswith(text) if number % 2 else wanted == text


def test_a_seed_repeats_what_was_drawn_and_room_bounds_it(client: Any) -> None:
    def draw(seed: int, n: int = 1000) -> Any:
        asked = {"model": "train.bam", "prompt": "a sum", "max_tokens": n, "temperature": 1.5}
        return client.completions.create(**asked, seed=seed)

    assert draw(1, 8).choices[0].text == draw(1, 8).choices[0].text != draw(2, 8).choices[0].text
    found = draw(3)
    assert found.usage.total_tokens <= 64  # all that the model reads; more was asked for


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"model": "gpt-4"}, 404, "this server has train.bam@0123456789ab or train.bam"),
        ({"prompt": "a b " * 100}, 400, "this model reads 64"),
        ({"max_tokens": 0}, 400, "must be at least 1"),
        ({"prompt": ["a", "b"]}, 400, "string"),
        ({"temperature": "warm"}, 400, "ValueError"),
        ({"unknown": 1}, 422, "Unexpected fields"),
    ],
)
def test_refusals_are_in_words(client: Any, changes: dict[str, Any], status: int, words: str) -> None:
    body = {"model": "train.bam", "prompt": "a", "max_tokens": 2} | changes
    with pytest.raises(openai.APIStatusError) as caught:
        client.post("/completions", body=body, cast_to=object)
    assert caught.value.status_code == status
    assert words in caught.value.message


def asked(address: str, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"} | headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_what_loads_or_unloads_models_is_not_there(running: Running) -> None:
    for path in ("/load_model", "/reset", "/v1/responses", "/v1/systemone", "/v1/audio/transcriptions"):
        assert asked(running.address, "POST", path, {"model": "org/other"})[0] == 404
    for path in ("/docs", "/openapi.json", "/redoc"):
        assert asked(running.address, "GET", path)[0] == 404
    assert asked(running.address, "GET", "/health")[0] == 200


def test_another_name_for_this_machine_is_refused(running: Running) -> None:
    """A web page whose name was pointed at 127.0.0.1 may not use the model."""
    assert asked(running.address, "GET", "/v1/models", Host="evil.example")[0] == 400
    assert asked(running.address, "GET", "/v1/models", Host="localhost:8000")[0] == 200


@pytest.mark.parametrize("messages", [None, "hello", [{"content": "no role"}], [{"role": "user", "content": 3}]])
def test_messages_that_are_none(running: Running, messages: Any) -> None:
    body = {"model": "train.bam", "messages": messages, "max_tokens": 2}
    status, answer = asked(running.address, "POST", "/v1/chat/completions", body)
    assert status == 400, answer
    assert json.loads(answer)["error"]["message"]


def test_with_a_token_only_who_shows_it_is_answered(served: server.Served) -> None:
    running = Running(server.build_app(served, token=TOKEN))
    try:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
            status, answer = asked(running.address, "GET", "/v1/models", **headers)
            assert status == 401
            assert TOKEN not in answer
        assert asked(running.address, "GET", "/v1/models", Authorization=f"Bearer {TOKEN}")[0] == 200
    finally:
        running.stop()


def test_hosts_and_ports_that_cannot_be_had() -> None:
    assert server.is_loopback("127.0.0.1")
    assert server.is_loopback("localhost")
    assert not server.is_loopback("0.0.0.0")
    with pytest.raises(UsageError, match="no-such-host"):
        server.is_loopback("no-such-host.invalid")
    with server.bound("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(UsageError, match="another --port"), server.bound("127.0.0.1", port):
            pass


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "find_spec", lambda name: None if name == "uvicorn" else name)
    with pytest.raises(UsageError, match=r"uvicorn: not installed.*\.\[serve\]"):
        server.require_libraries()


def test_answers_do_not_wait_for_a_client_that_went_away(running: Running, client: Any) -> None:
    began = time.monotonic()
    with client.completions.create(model="train.bam", prompt="a", max_tokens=40, stream=True) as stream:
        next(iter(stream))
    assert client.completions.create(model="train.bam", prompt="a", max_tokens=1).choices
    assert time.monotonic() - began < 60
