"""The planner's arithmetic: what is counted, what is fitted, what fits, and what a person reads when nothing does."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig, TrainConfig
from bam_core.errors import InvalidInput
from bam_core.nn import grouped
from bam_core.nn.costs import flops_per_token, params_total, training_bytes, training_flops
from bam_core.nn.short_attention import MAX_ROW
from bam_core.planner.calibration import Calibration, Prices, fit, non_negative
from bam_core.planner.cluster import NodeKind, nodes_of, read_cluster
from bam_core.planner.estimate import OTHER_DEVICE, Pass, Work, at, estimate, memory
from bam_core.planner.fit import refusal, room_of_each, smallest_change
from bam_core.planner.work import BLOCK, PASS_COSTS, PEAK_BYTES, SHORT_ROW, STEP_COSTS, Training, pass_costs

GIB = 2**30
DENSE = ModelConfig(1000, 64, 3, 4, 2, 160, 128)
BTX = replace(DENSE, ffn=FFNExperts(4, 1), experts=("a", "b", "c", "d"))
BAM = replace(BTX, attention=AttentionExperts(4, 4))
MODELS = {"dense": DENSE, "btx": BTX, "bam": BAM}
DEVICE = Calibration(
    device="a machine",
    kind="cpu",
    cpus=4,
    made={},
    steps={1: Prices(dict.fromkeys(STEP_COSTS, 1e-9)), 4: Prices(dict.fromkeys(STEP_COSTS, 0.25e-9))},
    passes={1: Prices(dict.fromkeys(PASS_COSTS, 1e-9))},
    peak=Prices(dict.fromkeys(PEAK_BYTES, 1.0)),
    idle_bytes={"local": float(GIB), "ray": float(GIB)},
    crowding=1.5,
    text_s_per_byte={"data": 1e-6},
    fixed_s={"local": {"seed": 2.0, "data": 1.0}},
    start_s=3.0,
    write_s_per_byte=1e-9,
    bytes_per_token=4.0,
)


def phase(rows: int = 8, tokens: int = 10_240, seq_len: int = 128) -> TrainConfig:
    return TrainConfig(tokens, rows * seq_len, 1e-3, {"a": 1.0}, seq_len)


def training(model: ModelConfig = DENSE, rows: int = 8, **how: Any) -> Training:
    return Training.of(model, phase(rows, seq_len=model.max_seq_len), **how)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_products_and_attention_are_all_flops_of_a_step(model: ModelConfig) -> None:
    costs = training(model).step_costs()
    assert costs["products"] + costs["attention"] == pytest.approx(training_flops(model, 8 * 128, 128))
    assert set(costs) == set(STEP_COSTS)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_pass_is_a_forward_pass(model: ModelConfig) -> None:
    costs = pass_costs(model, 1280, 128)
    at_mean = (flops_per_token(model, 0) + flops_per_token(model, 129)) / 2
    assert costs["products"] + costs["attention"] == pytest.approx(1280 * at_mean)
    assert set(costs) == set(PASS_COSTS)


def test_a_state_is_that_of_the_plans_table() -> None:
    assert training().peak_bytes()["state"] == training_bytes(DENSE)
    assert set(training().peak_bytes()) == set(PEAK_BYTES)
    shared = training(workers=4, sharded=True)
    gathered = 2 * 2 * params_total(DENSE) / DENSE.n_layers
    assert shared.peak_bytes()["state"] == pytest.approx(training_bytes(DENSE) / 4 + gathered)


def test_probabilities_are_kept_where_the_attention_of_short_rows_keeps_them() -> None:
    assert (SHORT_ROW, BLOCK) == (MAX_ROW, grouped.BLOCK)
    longer = replace(DENSE, max_seq_len=2 * MAX_ROW)
    assert training().peak_bytes()["scores"] == pytest.approx(2 * 8 * 128 * (129 / 2) * 4 * 3)
    assert training(longer).peak_bytes()["scores"] == training(gpu=True).peak_bytes()["scores"] == 0
    capped = replace(DENSE, attention_softcap=50.0)  # no kernel has the cap: the square, twice in float32, once in bf16
    assert training(capped, gpu=True).peak_bytes()["scores"] == pytest.approx(10 * 8 * 128 * 129 * 4 * 3)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(sorted(MODELS)),
    rows=st.integers(1, 16),
    more=st.integers(1, 16),
    micro=st.integers(1, 8),
    recompute=st.booleans(),
    tokens=st.integers(1, 10**6),
)
def test_more_work_is_never_less_time_or_memory(
    name: str, rows: int, more: int, micro: int, recompute: bool, tokens: int
) -> None:
    def made(rows: int, micro: int, tokens: int) -> Work:
        how = {"micro_batch_rows": micro, "recompute": recompute}
        its = phase(rows, tokens * rows)
        return Work("seed", 1, Training.of(MODELS[name], its, **how), its.n_steps, checkpoints=its.n_steps // 100)

    small = estimate(made(rows, micro, tokens), DEVICE, "local")
    for larger in (
        made(rows + more, micro, tokens),
        made(rows, micro + more, tokens),
        made(rows, micro, tokens + more),
    ):
        found = estimate(larger, DEVICE, "local")
        if larger.training and larger.training.micro_batch_rows == min(micro, rows):  # else fewer, larger products
            assert found.seconds >= small.seconds * (1 - 1e-12)
        assert found.memory.total >= small.memory.total * (1 - 1e-12)
    recomputed = at(made(rows, micro, tokens), replace(training(MODELS[name], rows), recompute=True))
    kept = at(recomputed, training(MODELS[name], rows))
    assert memory(recomputed, DEVICE, "local").total <= memory(kept, DEVICE, "local").total


def test_a_process_of_another_executor_is_another_size() -> None:
    """Where one was not measured, as much as the largest."""
    device = replace(DEVICE, idle_bytes={"local": float(GIB), "ray": 2.0 * GIB})
    sizes = [memory(Work("seed"), device, name).total / GIB for name in ("local", "ray", "another")]
    assert sizes == [1, 2, 2]
    assert estimate(Work("seed"), device, "ray").memory.total == 2 * GIB


def test_text_and_passes_and_writing_add_up() -> None:
    assert estimate(Work("data", text_bytes=5e6, read_s=2.0), DEVICE, "local").seconds == pytest.approx(1 + 2 + 5)
    scored = Work("seed", passes=(Pass(DENSE, 1280, 128),) * 2, written=10**6)
    prices = sum(pass_costs(DENSE, 1280, 128).values()) * 1e-9
    assert estimate(scored, DEVICE, "local").seconds == pytest.approx(2 + 2 * prices + 4e-3)
    assert estimate(Work("seed"), DEVICE, "ray").seconds == 5.0, "a process of its own, where Ray was not measured"
    assert estimate(Work("report"), DEVICE, "local").seconds == 2.0, "as the longest kind that was measured"


def test_a_gpu_where_a_cpu_was_calibrated_is_said() -> None:
    assert estimate(Work("seed", training=training()), DEVICE, "local").unknown == ()
    assert estimate(Work("data", gpu=True), DEVICE, "local").unknown == (), "it computes nothing"
    assert estimate(Work("seed", training=training(gpu=True), gpu=True), DEVICE, "local").unknown == (OTHER_DEVICE,)
    on_gpu = replace(DEVICE, kind="cuda")
    assert estimate(Work("evaluate", passes=(Pass(DENSE, 1, 1),)), on_gpu, "local").unknown == (OTHER_DEVICE,)


def test_threads_between_those_that_were_measured() -> None:
    counts = dict.fromkeys(STEP_COSTS, 1.0)
    one, two, four, eight = (DEVICE.step_seconds(counts, threads) for threads in (1, 2, 4, 8))
    assert (one, two, four) == pytest.approx((8e-9, 4e-9, 2e-9))
    assert eight == four


def test_the_fit_is_the_best_of_all_that_are_not_negative() -> None:
    """Karush, Kuhn and Tucker: where a price is above 0 the gradient is 0, and where it is 0 more would not help."""
    chance = np.random.default_rng(0)
    for _ in range(8):
        rows, target = chance.uniform(0, 1, (12, 5)) * 10.0 ** chance.integers(-3, 6, 5), chance.normal(1, 1, 12)
        found = non_negative(rows, target)
        gradient = (rows.T @ (rows @ found - target)) / np.linalg.norm(rows, axis=0)
        assert (found >= 0).all()
        assert np.abs(gradient[found > 0]).max(initial=0.0) < 1e-6
        assert (gradient > -1e-6).all()


def test_prices_are_found_again_and_say_how_far_off_they_are() -> None:
    counts = [training(model, rows).step_costs() for model in MODELS.values() for rows in (1, 3, 8, 16)]
    counts += [Training.of(m, phase(8), micro_batch_rows=2).step_costs() for m in MODELS.values()]
    true = Prices({name: 10.0**-place for place, name in enumerate(STEP_COSTS)})
    found = fit(counts, [true(row) for row in counts])
    assert [found(row) / true(row) for row in counts] == pytest.approx([1.0] * len(counts), rel=1e-3)
    assert found.worst < 1.2
    floor = {"products": 2 * true.of["products"]}
    assert fit(counts, [true(row) for row in counts], floor).of["products"] == floor["products"]
    assert fit(counts, [true(row) * (1.5 if i == 3 else 1) for i, row in enumerate(counts)]).worst > 1.2


def test_a_calibration_reads_what_it_wrote_and_nothing_else() -> None:
    written = json.loads(json.dumps(DEVICE.to_json()))
    assert Calibration.from_json(written, "here") == DEVICE
    for broken in (written | {"version": 99}, {}, [], written | {"peak": 1}, written | {"steps": {}}):
        with pytest.raises(InvalidInput, match="here"):
            Calibration.from_json(broken, "here")


def test_room_of_each_worker() -> None:
    assert room_of_each([(16, 4)], 1) == 16
    assert room_of_each([(16, 4)], 4) == 4
    assert room_of_each([(16, 4), (6, 1)], 3) == 6, "two on the large node, one on the small"
    assert room_of_each([(16, 1), (6, 1)], 3) == 0
    assert room_of_each([(float("inf"), 2)], 2) == float("inf")


@settings(max_examples=20, deadline=None)
@given(room=st.floats(1.0, 1.2), name=st.sampled_from(sorted(MODELS)), rows=st.sampled_from([1, 4, 8]))
def test_a_change_fits_and_no_cheaper_one_does(room: float, name: str, rows: int) -> None:
    now = training(MODELS[name], 8, micro_batch_rows=rows)

    def need(changed: Training) -> float:
        return memory(Work("seed", training=changed), DEVICE, "local").total / GIB

    if need(now) <= room:
        return
    change = smallest_change(now, need, lambda workers: room, "seed")
    fewer = [now.with_micro_batches_of(n) for n in (4, 2, 1) if n < rows]
    alone = [n.micro_batch_rows for n in fewer if need(n) <= room]
    if change is None:
        assert not alone
        return
    assert change.need <= room
    if alone:
        assert change.training == now.with_micro_batches_of(max(alone))
    else:
        assert change.training.recompute


def test_a_refusal_has_the_arithmetic_and_the_smallest_change() -> None:
    large = ModelConfig(32_000, 1024, 8, 16, 16, 2816, 512)
    now = Training.of(large, TrainConfig(10**9, 64 * 512, 1e-3, {"a": 1.0}, 512), micro_batch_rows=32)
    work = Work("seed", training=now)

    def words(room: float) -> str:
        def need(changed: Training) -> float:
            return memory(at(work, changed), DEVICE, "local").total

        change = smallest_change(now, need, lambda workers: room, "seed")
        return refusal("seed", memory(work, DEVICE, "local"), room, "small", change)

    assert words(8 * GIB) == GOLDEN["rows"]
    assert words(3.65 * GIB) == GOLDEN["recompute"]
    assert words(2 * GIB) == GOLDEN["shards"]
    assert words(0.5 * GIB) == GOLDEN["nothing"]


NEEDS = (
    "seed: a worker needs 9.6 GiB = activations 4.1 GiB + weights, gradients, masters, moments 2.5 GiB + "
    "attention probabilities 1.0 GiB + process 1.0 GiB + logits 1.0 GiB; the most room is "
)
GOLDEN = {
    "rows": f"{NEEDS}8.0 GiB (small); it fits with runtime.micro_batch_rows: 16: 6.5 GiB",
    "recompute": f"{NEEDS}3.6 GiB (small); it fits with runtime.micro_batch_rows: 2, "
    "runtime.activation_checkpointing: true: 3.6 GiB",
    "shards": f"{NEEDS}2.0 GiB (small); it fits with runtime.micro_batch_rows: 1, "
    "runtime.activation_checkpointing: true, runtime.seed.strategy: fsdp, runtime.seed.workers: 4: 1.8 GiB",
    "nothing": f"{NEEDS}512 MiB (small); no smaller batch, checkpointing or sharding makes it fit: "
    "add a node that gives each worker 9.6 GiB",
}


def test_a_cluster_says_all_that_is_wrong_at_once() -> None:
    nodes = [
        {"name": "small", "cpus": 4, "memory": "16G", "gpu": 1},
        {"cpus": 0.5, "memory": "lots", "price_per_hour": -1},
        {"name": "small", "cpus": 4},
        "large",
    ]
    with pytest.raises(InvalidInput) as raised:
        read_cluster({"nodes": nodes, "node": []}, "cluster.yaml")
    paths = {problem.path for problem in raised.value.problems}
    assert paths == {
        "node",
        "nodes.0.gpu",
        "nodes.1.name",
        "nodes.1.cpus",
        "nodes.1.memory",
        "nodes.1.price_per_hour",
        "nodes.2.name",
        "nodes.3",
    }


@pytest.mark.parametrize("wrong", [None, [], 3, {}, {"nodes": {}}, {"nodes": []}, {"nodes": "small"}])
def test_what_is_no_cluster(wrong: object) -> None:
    with pytest.raises(InvalidInput, match="here"):
        read_cluster(wrong, "here")


def test_a_cluster_file() -> None:
    said = {"name": "gpu", "count": 2, "cpus": 16, "memory": "128G", "gpus": 1, "gpu_memory": "80GiB"}
    (kind,) = read_cluster({"nodes": [said | {"price_per_hour": 3, "watts": 700, "calibration": "h.json"}]}, "here")
    assert kind == NodeKind("gpu", 2, 16, 128 * GIB, 1, 80 * GIB, 3.0, 700.0, "h.json")
    assert [name for name, _ in nodes_of([kind])] == ["gpu-1", "gpu-2"]


def test_a_cluster_file_of_ray() -> None:
    types = {
        "head": {"resources": {"CPU": 0}},
        "cpu": {"max_workers": 4, "resources": {"CPU": 8, "memory": 16 * GIB}},
        "gpu": {"resources": {"CPU": 8, "GPU": 1}},
    }
    document = {"head_node_type": "head", "max_workers": 2, "available_node_types": types}
    assert read_cluster(document, "here") == (NodeKind("cpu", 4, 8, 16 * GIB), NodeKind("gpu", 2, 8, None, 1))
    with pytest.raises(InvalidInput, match="resources"):
        read_cluster({"available_node_types": {"cpu": {}}}, "here")
