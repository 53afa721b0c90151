"""Train a small model on a few lines, and measure it: perplexity and bits per byte on text that it has not seen."""

from __future__ import annotations

import numpy as np
import torch

from bam_core import LM, ModelConfig, TextRows, Tokenizer, generate, init_weights, score, train_bpe
from bam_core.nn.losses import next_token_loss

LINES = [f"{a} and {b} make {a + b}, and {b} and {a} make {a + b} too." for a in range(40) for b in range(40)]


def main() -> None:
    held_out, train = LINES[::10], [line for number, line in enumerate(LINES) if number % 10]
    tokenizer = Tokenizer(train_bpe(train, 300))
    sizes = {"d_model": 48, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 96, "max_seq_len": 64}
    model = LM(ModelConfig(vocab_size=tokenizer.vocab_size, **sizes))
    init_weights(model, seed=0)
    rows, valid = (TextRows(lines, tokenizer, seq_len=64) for lines in (train, held_out))

    before, _ = score(model, valid, max_tokens=10_000)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    chance = np.random.default_rng(0)
    model.train()
    for _ in range(80):
        tokens_BT = torch.from_numpy(rows[chance.integers(len(rows), size=8)])
        logits = model.logits(model(tokens_BT[:, :-1]).hidden_BTD)
        loss = next_token_loss(logits, tokens_BT[:, 1:]) / tokens_BT[:, 1:].numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    after, _ = score(model, valid, max_tokens=10_000)
    print(f"perplexity {before.perplexity:.1f} -> {after.perplexity:.2f}, {after.bits_per_byte:.2f} bits per byte")
    assert after.perplexity < 0.1 * before.perplexity

    prompt = torch.tensor([tokenizer.eos_id, *tokenizer.encode_batch(["7 and 8 make"])[0]])
    print("7 and 8 make" + tokenizer.decode(generate(model, prompt, 12, eos_id=tokenizer.eos_id)))


if __name__ == "__main__":
    main()
