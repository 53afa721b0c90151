"""Three dense models in memory become one mixture, and what must hold of it before any training does."""

from __future__ import annotations

from bam_core import LM, ModelConfig, init_weights, upcycle_models

CONFIG = ModelConfig(vocab_size=101, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=48, max_seq_len=32)


def dense(seed: int) -> LM:
    """A dense model with random weights, in the place of one that was trained."""
    model = LM(CONFIG)
    init_weights(model, seed)
    return model


def main() -> None:
    experts = {"general": dense(0), "law": dense(1), "code": dense(2)}  # the common seed model comes first
    made = upcycle_models(experts, "bam")  # or "btx", "bam_shared_kv", "soup", a Variant of your own
    print(f"{made.model.config.attention.n_experts} attention experts, {made.model.config.ffn.n_experts} FFN experts")

    # Each expert, given its dense model's input and all of the tokens, must give that model's output.
    for name, found in made.receipt()["experts"].items():
        print(f"{name}: off by {found['max_abs_diff']:.1e} at most, of outputs up to {found['max_abs_value']:.1f}")
        assert found["max_abs_diff"] < 1e-9

    # Every tensor says what it was made from.
    print("blocks.0.ffn.w_up:", [origin["expert"] for origin in made.tensors["blocks.0.ffn.w_up"]["from"]])
    print("norm.weight:", made.tensors["norm.weight"]["op"])


if __name__ == "__main__":
    main()
