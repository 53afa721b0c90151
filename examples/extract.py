"""An expert out of a mixture again: of an untrained one, bit by bit what went in."""

from __future__ import annotations

import torch
from upcycle import dense

from bam_core import extract_model, upcycle_models


def main() -> None:
    law = dense(1)
    mixture = upcycle_models({"general": dense(0), "law": law}, "bam").model
    back = extract_model(mixture, "law")

    same, merged = [], []
    for name, tensor in back.state_dict().items():
        (same if torch.equal(tensor, law.state_dict()[name]) else merged).append(name)
    print(f"as they went in: {len(same)} tensors, such as {same[1]}")
    print(f"the mixture's own, merged of all: {', '.join(merged) or 'none'}")
    assert all(".attn." not in name and ".ffn." not in name for name in merged)


if __name__ == "__main__":
    main()
