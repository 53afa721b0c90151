"""Commands before a stand-in for `wiring`: what they ask of it, what they print, how they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bam_core.errors import LeaseHeld, StageFailed, StoreError
from bam_core.graph.plan import Decision
from pipelines import wiring
from pipelines.runner import RunResult, StageResult, StageState

KEY = "ab" * 32


@dataclass
class FakeWiring:
    """Answers with `result`, or raises it; remembers what it was asked."""

    result: Any = None
    asked: dict[str, Any] = field(default_factory=dict)

    def answer(self, **asked: Any) -> Any:
        self.asked = asked
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result

    def run(self, recipe, settings, selection, display, **options):
        display.message("a word")
        display.update([StageState("seed", KEY, "run", "running", "never made")])
        print("what a library prints")
        return self.answer(recipe=recipe, settings=settings, selection=selection, **options)

    def run_stage(self, name, recipe, settings, inputs, with_deps, display, **options):
        return self.answer(name=name, settings=settings, inputs=inputs, with_deps=with_deps)

    def make_plan(self, recipe, settings, selection):
        return self.answer(recipe=recipe, settings=settings, selection=selection)

    def generate(self, ref, prompt, settings, **options):
        return self.answer(ref=ref, prompt=prompt, **options)

    def doctor(self, settings):
        return self.answer()

    def serve_ui(self, settings, port, open_browser):
        return self.answer(port=port, open_browser=open_browser)

    def lineage_sync(self, settings):
        return self.answer()


@pytest.fixture
def fake(monkeypatch):
    stand_in = FakeWiring()
    for name in ("run", "run_stage", "make_plan", "generate", "doctor", "serve_ui", "lineage_sync"):
        monkeypatch.setattr(wiring, name, getattr(stand_in, name), raising=False)
    return stand_in


def ended(status: str = "done", *stages: StageResult, report: str | None = None) -> RunResult:
    return RunResult("quickstart-1", status, 12.3456, stages, report)


SEED = StageResult("seed", KEY, "run", "done", 3.0, "/store/artifacts/seed/abababababab")
LAW = StageResult("expert.law", KEY, "run", "failed", 1.0, None, "expert.law: no room on the disk")
MIX = StageResult("mix.bam", KEY, "run", "skipped", 0.0)


def test_run_json_is_the_contract_and_alone_on_stdout(bam, fake):
    fake.result = ended("done", SEED, report="/store/report.html")
    done = bam("run", "quickstart", "--json")
    answer = json.loads(done.out)
    assert done.status == 0
    assert {name: answer[name] for name in ("run", "status", "seconds", "report")} == {
        "run": "quickstart-1",
        "status": "done",
        "seconds": 12.346,
        "report": "/store/report.html",
    }
    assert {"stage", "key", "action", "seconds", "artifact"} <= answer["stages"][0].keys()
    assert "what a library prints" in done.err
    assert "a word" in done.err


def test_run_for_people(bam, fake):
    fake.result = ended("done", SEED, report="/store/report.html")
    done = bam("run", "quickstart")
    assert done.status == 0
    assert "seed  starts: never made" in done.out
    assert "\ndone in 12s: 1 done\nmade: seed\nin: /store\nreport: /store/report.html\n\nNext:\n" in done.out
    assert [line.partition("  #")[0].rstrip() for line in done.out.splitlines()[-3:]] == [
        "  bam generate seed 'It was'",
        "  bam ui",
        "  bam export seed exported",
    ]


def test_a_failed_run_ends_with_the_command_that_continues(bam, fake):
    fake.result = ended("failed", SEED, LAW, MIX)
    argv = ["--store", "my store", "--set", "seed=3", "--force", "seed", "--force", "expert.*", "--fail-fast"]
    done = bam("run", "quickstart", *argv)
    assert done.status == 1
    assert "bam: expert.law: no room on the disk" in done.err
    assert "not started, they need it: mix.bam" in done.err
    again = "bam run quickstart --set seed=3 --force expert.law --store 'my store'"
    assert done.err.endswith(f"continue with\n  {again}\n")  # `seed` is made: not forced again
    assert fake.asked["keep_going"] is False


def test_no_password_is_told_back(bam, fake):
    fake.result = ended("failed", LAW)
    done = bam("run", "quickstart", "--tracking-uri", "http://me:secret@host")
    assert "secret" not in done.err + done.out


def test_an_interrupted_run(bam, fake):
    fake.result = ended("interrupted", SEED)
    assert bam("run", "quickstart").status == 130
    fake.result = KeyboardInterrupt()
    done = bam("run", "quickstart")
    assert done.status == 130
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("error", "status"),
    [(StageFailed("it broke"), 1), (StoreError("it broke"), 2), (LeaseHeld("it broke"), 3)],
)
def test_errors_in_words_with_their_status(bam, fake, error, status):
    fake.result = error
    done = bam("run", "quickstart", "--json")
    assert (done.status, done.out) == (status, "")
    assert "bam: it broke" in done.err
    assert "Traceback" not in done.err


def test_a_bug_is_one_line_and_a_log_or_a_traceback(bam, fake, here, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(here))
    monkeypatch.setattr("tempfile.tempdir", None)
    fake.result = ZeroDivisionError("oh\nno")
    done = bam("plan", "quickstart")
    (log,) = here.iterdir()
    assert done.status == 1
    assert done.err == f"bam: unexpected ZeroDivisionError: oh (traceback: {log}, or -v)\n"
    assert "Traceback" in log.read_text()
    assert "Traceback" in bam("plan", "quickstart", "-v").err


def test_options_before_and_after_the_command(bam, fake, monkeypatch):
    fake.result = SimpleNamespace(decisions=[], models={}, searches={}, warnings=[], data={}, recipe={}, pipeline=None)
    bam("--store", "a", "plan", "quickstart", "--address", "ray://x", "-v")
    assert fake.asked["settings"] == wiring.Settings("a", None, "ray://x", "ray", True)
    bam("--store", "a", "plan", "--store", "b", "quickstart")
    assert fake.asked["settings"].store == "b"
    monkeypatch.setenv("BAM_STORE", "from-environment")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host")
    monkeypatch.setenv("RAY_ADDRESS", "")
    bam("plan", "quickstart")
    assert fake.asked["settings"] == wiring.Settings("from-environment", "http://host", None, "ray", False)
    bam("plan", "quickstart", "--store", "typed")
    assert fake.asked["settings"].store == "typed"


def test_the_default_store(bam, fake):
    fake.result = SimpleNamespace(decisions=[], models={}, searches={}, warnings=[], data={}, recipe={}, pipeline=None)
    bam("plan", "quickstart")
    assert fake.asked["settings"].store == "./bam_store"


PLAN = SimpleNamespace(
    decisions=[
        Decision("seed", KEY, "reuse", "done", "none"),
        Decision("train.bam", KEY, "run", "forced by --force", "forced", ("mix.bam",)),
    ],
    searches={},
    models={
        "seed": {
            "params_total": 1_330_000,
            "params_active": 1_330_000,
            "flops_per_token": 3_180_000,
            "training_bytes": None,
        },
        "train.bam": {
            "params_total": 2_000_000,
            "train_flops": 9.5e18,
            "paper": {
                "flops_per_token_and_layer": 48_250_880,
                "flops_as_printed": 48_257_024,
                "notes": ["Table 7, total: has 4098"],
            },
        },
    },
    warnings=["variants.bam: ffn.experts has copies"],
    data={},
    recipe={"name": "quickstart"},
    plugins=(),
    pipeline=None,
)


@pytest.mark.parametrize("argv", [["plan", "quickstart"], ["run", "quickstart", "--dry-run"]])
def test_plan(bam, fake, argv):
    fake.result = PLAN
    done = bam(*argv, "--json")
    answer = json.loads(done.out)
    assert answer["models"] == PLAN.models
    assert answer["warnings"] == PLAN.warnings
    assert answer["stages"][1] == {
        "stage": "train.bam",
        "key": KEY,
        "action": "run",
        "reason": "forced by --force",
        "cause": "forced",
        "after": ["mix.bam"],
    }
    words = bam(*argv, "--force", "train.bam").out
    assert "train.bam  abababababab  run     forced by --force" in words
    assert ["seed", "1.33M", "1.33M", "3.18M"] in [line.split() for line in words.splitlines()]
    assert ["train.bam", "2M", "9.5e+18"] in [line.split() for line in words.splitlines()]
    assert ["train.bam", "48,250,880", "48,257,024"] in [line.split() for line in words.splitlines()]
    assert "bam: Table 7, total: has 4098\n" in words
    assert "2 stages: 1 reuse, 1 run\n" in words
    assert words.endswith("warning: variants.bam: ffn.experts has copies\n")
    assert fake.asked["selection"].force == ("train.bam",)


def test_stage(bam, fake):
    fake.result = ended("done", SEED)
    done = bam("stage", "expert.law", "quickstart", "--input", "seed=seed@abab", "--with-deps")
    assert done.status == 0
    assert (fake.asked["name"], fake.asked["inputs"], fake.asked["with_deps"]) == (
        "expert.law",
        {"seed": "seed@abab"},
        True,
    )


def test_generate(bam, fake):
    fake.result = "there was a model"
    assert bam("generate", "train.bam", "once", "--temperature", "0.5").out == "there was a model\n"
    assert (fake.asked["temperature"], fake.asked["top_p"]) == (0.5, 1.0)
    bam("generate", "train.bam", "once", "--temperature", "0.5", "--top-p", "0.9")
    assert fake.asked["top_p"] == 0.9
    answer = json.loads(bam("generate", "train.bam", "once", "--json").out)
    assert answer == {"ref": "train.bam", "prompt": "once", "text": "there was a model"}


def test_ui_and_sync(bam, fake):
    assert bam("ui", "--port", "0").status == 0
    assert fake.asked == {"port": 0, "open_browser": False}
    fake.result = 7
    assert bam("lineage", "sync").out == "7 artifacts are in MLflow\n"


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    detail: str
    remedy: str = ""


def test_doctor(bam, fake):
    fake.result = [Check("store", True, "writable")]
    assert bam("doctor").status == 0
    fake.result.append(Check("ray", False, "no answer", "start it"))
    done = bam("doctor")
    assert done.status == 1
    assert "start it" in done.out
    assert [check["ok"] for check in json.loads(bam("doctor", "--json").out)] == [True, False]


def test_help_is_for_people(bam):
    done = bam("--help")
    assert (done.status, done.err) == (0, "")
    for name in (
        "run",
        "plan",
        "stage",
        "ls",
        "show",
        "tree",
        "get",
        "verify",
        "lineage",
        "ui",
        "generate",
        "doctor",
    ):
        assert f"\n  {name} " in done.out
        assert bam(name, "--help").status == 0


def test_the_command_line_starts_light():
    code = (
        "import sys; from pipelines.cli import main; from pipelines.cli import artifacts, runs, views\n"
        "main(['--help'])\n"
        "heavy = {'torch', 'ray', 'mlflow', 'pyarrow', 'pydantic', 'rich', 'pipelines.wiring'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
