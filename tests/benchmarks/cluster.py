"""`python -m tests.benchmarks.cluster overhead|goodput|nodes`: what Ray costs a whole run, what killed workers cost it,
and whether two nodes and S3 change a byte.

overhead: the recipe in one process, each stage alone (that is its compute), then on an embedded Ray; wall time of the
second over the sum of the first. goodput: the seed trained with a worker killed every so often; what of its time was
not lost by that, from the steps that it told. Undisturbed before and after (not with `--alone`), since a machine's
speed drifts: seconds of these over those, and whether the bytes are the same. nodes: the recipe on two raylets, of one
CPU and of two, with a store on an S3 server; on which node each stage was trained, and whether every artifact has the
bytes of one process (made anew, or those of `--beside STORE`).

Each is run once, by the command line that people use, from an empty store. The result is `.bench/cluster-*.json`.
Nothing here is a test: no figure is asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from infra.store import ArtifactStore
from tests.benchmarks.result import OUT, write_result
from tests.cluster.kit import Cluster
from tests.infra.s3_kit import S3Server

NO_MLFLOW = ("--tracking-uri", "http://127.0.0.1:9")
LOOK_EVERY_S = 2.0


class Run:
    """`bam run` in a process of its own. peak_bytes: the most that its processes held at once, shared pages apart."""

    def __init__(self, store: Path | str, executor: str, words: list[str], env: dict[str, str] | None = None) -> None:
        script = Path(sys.executable).with_name("bam")
        command = [str(script), "run", *words, "--store", str(store), "--executor", executor, *NO_MLFLOW, "--json"]
        self.started = time.monotonic()
        self._err = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._err, text=True, env=env or _env())
        self.peak_bytes, self.most_workers = 0, 0
        threading.Thread(target=self._watch, daemon=True).start()

    def result(self) -> dict[str, Any]:
        out, _ = self.process.communicate()
        self.wall_s = time.monotonic() - self.started
        if self.process.returncode:
            self._err.seek(0)
            sys.exit(self._err.read())
        found: dict[str, Any] = json.loads(out)
        return found

    def workers(self) -> list[psutil.Process]:
        """Processes of worker groups."""
        return [one for one in self._processes() if _named(one, "RayTrainWorker")]

    def _processes(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.process.pid)
            return [own, *own.children(recursive=True)]
        return []

    def _watch(self) -> None:
        while self.process.poll() is None:
            processes = self._processes()
            self.peak_bytes = max(self.peak_bytes, sum(_own_bytes(one) for one in processes))
            self.most_workers = max(self.most_workers, sum(_named(one, "RayTrainWorker") for one in processes))
            time.sleep(LOOK_EVERY_S)


def _named(process: psutil.Process, words: str) -> bool:
    with suppress(psutil.Error):
        return words in " ".join(process.cmdline())
    return False


def _own_bytes(process: psutil.Process) -> int:
    with suppress(psutil.Error):
        memory = process.memory_info()
        return int(memory.rss - memory.shared)
    return 0


def _env() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def overhead(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    words = [options.recipe, *options.words]
    alone = Run(folder / "local", "local", words)
    compute = {stage["stage"]: stage["seconds"] for stage in alone.result()["stages"]}
    ray = Run(folder / "ray", "ray", words)
    there = {stage["stage"]: stage["seconds"] for stage in ray.result()["stages"]}
    total = sum(compute.values())
    print(f"{'stage':<24}{'alone s':>10}{'on Ray s':>10}")
    for stage, seconds in compute.items():
        print(f"{stage:<24}{seconds:>10.1f}{there[stage]:>10.1f}")
    print(f"{'sum, wall':<24}{total:>10.1f}{ray.wall_s:>10.1f}   overhead {ray.wall_s / total:.2f}")
    print(f"most worker processes at once: {ray.most_workers}; peak memory {ray.peak_bytes / 2**20:,.0f} MiB")
    return {
        "compute_s": compute,
        "ray_s": there,
        "local_wall_s": alone.wall_s,
        "ray_wall_s": ray.wall_s,
        "overhead": ray.wall_s / total,
        "most_workers": ray.most_workers,
        "peak_bytes": ray.peak_bytes,
    }


def goodput(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    words = [options.recipe, "--set", f"phases.seed.tokens={options.tokens}", *options.words, "--until"]
    Run(folder / "start", "local", [*words, "data.general"]).result()
    seconds, made = {}, {}
    watch = _Killing(options.every)
    for name in ("disturbed",) if options.alone else ("before", "disturbed", "after"):  # a machine's speed drifts
        shutil.copytree(folder / "start", folder / name)
        run = Run(folder / name, "ray", [*words, "seed"])
        if name == "disturbed":
            threading.Thread(target=watch, args=(run, folder / name), daemon=True).start()
        [seed] = [stage for stage in run.result()["stages"] if stage["stage"] == "seed"]
        seconds[name] = seed["seconds"]
        made[name] = json.loads((Path(seed["artifact"]) / "record.json").read_text())["digest"]
    lost = watch.lost_s()
    share = 1 - sum(lost) / seconds["disturbed"]
    print(f"{len(watch.kills)} workers killed in {seconds['disturbed']:.1f} s; each cost, in s: {lost}")
    print(f"goodput {share:.3f}")
    found = {"seconds": seconds, "kills_at": watch.kills, "lost_s": lost, "goodput": share}
    if options.alone:
        return found
    same, undisturbed = len(set(made.values())) == 1, (seconds["before"] + seconds["after"]) / 2
    print(f"undisturbed {seconds['before']:.1f} s before and {seconds['after']:.1f} s after: their mean over it is")
    print(f"{undisturbed / seconds['disturbed']:.3f}; bytes {'identical' if same else 'DIFFER'}")
    return {**found, "goodput_by_wall_time": undisturbed / seconds["disturbed"], "identical": same}


class _Killing:
    """Kills a worker of a run every so often, and reads how far its training is."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self.kills: list[float] = []
        self._seen: dict[float, dict[str, Any]] = {}

    def __call__(self, run: Run, store: Path) -> None:
        while not run.workers():
            time.sleep(LOOK_EVERY_S)
        due = time.monotonic() + self._every_s
        while run.process.poll() is None:
            for file in store.glob("artifacts/seed/*/attempts/*/progress.json"):
                with suppress(OSError, ValueError):  # just replaced
                    progress = json.loads(file.read_text())
                    self._seen[progress["at"]] = progress
            if time.monotonic() >= due:
                due += self._every_s
                for worker in run.workers()[:1]:
                    with suppress(psutil.NoSuchProcess):
                        worker.kill()
                        self.kills.append(time.time())
            time.sleep(0.2)

    def lost_s(self) -> list[float]:
        """Of each kill: from the last step told before it to the first new one after it, less what the steps between
        take by the median speed of the run."""
        seen = [self._seen[at] for at in sorted(self._seen)]
        step_s = statistics.median(one["tokens"] / one["step"] / one["tokens_per_s"] for one in seen)
        lost = []
        for kill in self.kills:
            last = max((one for one in seen if one["at"] <= kill), key=lambda one: one["step"])
            for one in seen:
                if one["at"] > kill and one["step"] > last["step"]:
                    lost.append(round(one["at"] - last["at"] - (one["step"] - last["step"]) * step_s, 1))
                    break
        return lost


def nodes(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    beside = options.beside or folder / "local"
    words = [options.recipe, *options.words]
    here = {stage["stage"]: stage["key"] for stage in Run(beside, "local", words).result()["stages"]}
    server = S3Server.start()
    os.environ.update(server.env())
    cluster = Cluster(folder / "c", cpus=1, extra_env=server.env())
    try:
        cluster.start().add_node("second", cpus=2)
        run = Run(server.uri("nodes"), "ray", [*words, "--address", cluster.address], cluster.env())
        run.result()
        there, local = ArtifactStore(server.uri("nodes")), ArtifactStore(str(beside))
        found = {stage: _compared(stage, key, local, there) for stage, key in here.items()}
    finally:
        cluster.stop()
        server.stop()
    for stage, row in found.items():
        print(f"{stage:<24}{', '.join(row['nodes']) or 'driver':<44}{'identical' if row['identical'] else 'DIFFERS'}")
    print(f"{run.wall_s:.1f} s on two nodes")
    return {"wall_s": run.wall_s, "stages": found}


def _compared(stage: str, key: str, local: ArtifactStore, there: ArtifactStore) -> dict[str, Any]:
    """On which nodes a stage ran, and whether its outputs are the same; a missing record is a difference."""
    ours, theirs = local.record(stage, key), there.record(stage, key)
    if ours is None or theirs is None:
        return {"nodes": [], "identical": False}
    ran_on = sorted({place["node"][:12] for place in theirs.provenance.get("ran_on", ())})
    same = [(one.path, one.sha256) for one in ours.outputs] == [(one.path, one.sha256) for one in theirs.outputs]
    return {"nodes": ran_on, "identical": same}


MEASURES = {"overhead": overhead, "goodput": goodput, "nodes": nodes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=MEASURES)
    parser.add_argument("recipe", nargs="?", default="quickstart")
    parser.add_argument("--tokens", default="8M", help="goodput: of the seed; 8M take about ten minutes on two cores")
    parser.add_argument("--every", type=float, default=60.0, help="goodput: seconds from one kill to the next")
    parser.add_argument("--alone", action="store_true", help="goodput: without the undisturbed runs")
    parser.add_argument("--beside", type=Path, help="nodes: a store that holds what one process made of the recipe")
    parser.add_argument("--out", type=Path, default=OUT)
    options, options.words = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="bam-bench-", ignore_cleanup_errors=True) as folder:
        try:
            figures = MEASURES[options.what](options, Path(folder))
        finally:
            for process in psutil.Process().children(recursive=True):  # left only if this was interrupted
                with suppress(psutil.NoSuchProcess):
                    process.kill()
    write_result(f"cluster-{options.what}", figures, options.out)


if __name__ == "__main__":
    main()
