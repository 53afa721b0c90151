"""A model laid out for inference: what `LM` computes in evaluation, to rounding, in less time.

One new token a row reads every weight for a few vectors, so time goes into reading weights, and into the number of
calls. Against `LM`, whose layout is made for training:

- queries, keys and values are one matrix, with rotary pairs as halves (the same scores, whatever the pairs were)
- several rows: every matrix is packed, once, as oneDNN's kernel reads it; its products apply SwiGLU's activation too
- one row: the same without AMX; with it matrix-vector products, for which the matrices that write to the residual
  stream are copied so that D comes first
- of FFN experts only the chosen are called; of attention experts only those for which some row has a gate, where a
  threshold or a top-k leaves any out. Keys and values of all are made, since a later token may need them
- in the last layer only the last position goes on, so a prompt is read with one output per row

Nothing here is kept for a loss or a gradient. `tests/core/test_nn_decode.py` compares it with `LM`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bam_core.nn.attention import (
    Attention,
    Cache,
    LayerCache,
    Rotary,
    attend,
    half_pairs,
    qk_normed,
    rotary_at,
)
from bam_core.nn.block import Block
from bam_core.nn.layers import apply_rotary, rotary_of
from bam_core.nn.lm import LM
from bam_core.nn.moa import ATTEND, MixtureOfAttention
from bam_core.nn.moe import MixtureOfExperts
from bam_core.nn.products import BiasedProduct, Layout, Product, expert_products, ffn_product, layout_for
from bam_core.nn.routing import route, router_logits, router_reads
from bam_core.nn.shared import finished_logits


class Decoder:
    """The logits after each row's last token, of an LM in evaluation mode.

    rows, steps: of the calls to come. Queries, keys and values are copied. For many steps (`products.LAID_OUT_FROM`)
    matrices are copied when they are first used: in bf16 on a CPU all, which is as much memory again; for one row with
    AMX, or in another precision, those that write. Other weights are shared, so a decoder is for as long as they stay
    as they are.
    """

    def __init__(self, model: LM, *, rows: int, steps: int) -> None:
        layout = layout_for(model.embed.weight, rows, steps)
        self.model = model
        self._layers = [_Layer(block, layout) for block in model.blocks if isinstance(block, Block)]
        table = model.head or model.embed
        self._head = None if model.config.is_routed("head") else BiasedProduct(table.weight, table.bias, layout)

    @torch.no_grad()
    def __call__(self, tokens_BT: Tensor, cache: Cache) -> Tensor:
        """logits_BV of the last of `tokens_BT`, which follow the positions in `cache`; the cache grows by them.

        All calls with one cache are of decoders, none of `LM`: the keys in it have their rotary pairs as halves.
        """
        model, config = self.model, self.model.config
        assert not model.training, "a decoder is for a model in evaluation mode"
        x_BTD, mix_BTE, text_BTD = model.start(tokens_BT, cache)
        tables = rotary_of(config, x_BTD.dtype, x_BTD.device)
        positions = cache.positions(tokens_BT.shape[1])
        rotary = (tables[0][positions], tables[1][positions])
        for i, layer in enumerate(self._layers):
            last_only = i == len(self._layers) - 1
            x_BTD = layer(x_BTD, rotary, cache.layers[i], mix_BTE, text_BTD, last_only=last_only)
        mix_B1E = mix_BTE[:, -1:] if mix_BTE is not None else None
        hidden_BD = model.norm(x_BTD, mix_B1E)[:, 0]
        if self._head is not None:
            return finished_logits(model.config, self._head(hidden_BD))
        return model.logits(hidden_BD, mix_B1E[:, 0] if mix_B1E is not None else None)


class _Layer:
    def __init__(self, block: Block, layout: Layout) -> None:
        self._block = block
        self._attention = _Attention(block.attn, layout)
        self._ffn = (
            _FFNExperts(block.ffn, layout)
            if isinstance(block.ffn, MixtureOfExperts)
            else ffn_product(block.ffn, layout)
        )

    def __call__(
        self,
        x_BTD: Tensor,
        rotary: Rotary,
        cache: LayerCache,
        mix_BTE: Tensor | None,
        text_BTD: Tensor | None,
        *,
        last_only: bool,
    ) -> Tensor:
        """The residual stream after this layer; of each row's last position alone if last_only."""
        block = self._block
        asked = slice(-1, None) if last_only else slice(None)
        h_BTD = block.read("attn", x_BTD, mix_BTE)
        text_BTD = text_BTD[:, asked] if text_BTD is not None else None
        attention_BTD = self._attention(h_BTD, rotary, cache, asked, text_BTD)
        mix_BTE = mix_BTE[:, asked] if mix_BTE is not None else None
        before_BTD = x_BTD[:, asked]
        x_BTD = before_BTD + block.made("attn", attention_BTD, mix_BTE)
        if block.one_norm:
            h_BTD = h_BTD[:, asked]
        else:
            h_BTD = block.read("ffn", before_BTD if block.parallel else x_BTD, mix_BTE)
        x_ND = h_BTD.flatten(0, 1)
        text_ND = text_BTD.flatten(0, 1) if text_BTD is not None else None
        y_ND = self._ffn(x_ND, text_ND) if isinstance(self._ffn, _FFNExperts) else self._ffn(x_ND)
        ffn_BTD = y_ND.view_as(x_BTD)
        return x_BTD.add_(block.made("ffn", ffn_BTD, mix_BTE))


class _Attention:
    """Dense is one expert without a gate."""

    def __init__(self, module: Attention | MixtureOfAttention, layout: Layout) -> None:
        self._module, self._config = module, module.config
        experts = module.experts if isinstance(module, MixtureOfAttention) else None
        self._kv, self._n_experts = (experts.kv, experts.n_experts) if experts is not None else ("expert", 1)
        w_q, w_k = (half_pairs(w.detach(), self._config).flatten(0, -2) for w in (module.w_q, module.w_k))
        w_v = module.w_v.detach().flatten(0, -2)
        self._n_queries, self._n_keys = len(w_q) // self._config.head_dim, len(w_k) // self._config.head_dim
        self._q_norm, self._k_norm, b_q, b_k = (
            half_pairs(x.detach().unsqueeze(-1), self._config).squeeze(-1) if x is not None else None
            for x in (module.q_norm, module.k_norm, module.b_q, module.b_k)
        )
        b_v = module.b_v.detach() if module.b_v is not None else None
        sparse = experts is not None and (experts.top_k < experts.n_experts or experts.threshold > 0)
        self._leaves_out = sparse and self._kv != "value_only"
        if self._leaves_out:
            biases = [None] * self._n_experts if b_q is None else b_q.unbind()
            queries = zip(w_q.chunk(self._n_experts), biases, strict=True)
            self._keys_values = BiasedProduct(torch.cat((w_k, w_v)), _in_a_row(b_k, b_v), layout)
            self._queries = [BiasedProduct(*parts, layout) for parts in queries]
            self._outputs = [Product(w_RD.T, layout) for w_RD in module.w_o]
        else:
            self._all = BiasedProduct(torch.cat((w_q, w_k, w_v)), _in_a_row(b_q, b_k, b_v), layout)
            self._output = Product(module.w_o.flatten(0, -2).T, layout)

    def __call__(
        self, h_BTD: Tensor, rotary: Rotary, cache: LayerCache, asked: slice, text_BTD: Tensor | None
    ) -> Tensor:
        """The output at the positions asked for, of which the text so far is given; all go into the cache."""
        gate_BTE, turn = (
            self._gates(router_reads(h_BTD[:, asked], text_BTD)),
            rotary_at(self._config, self._module.layer, rotary),
        )
        if self._leaves_out:
            assert gate_BTE is not None, "only a mixture leaves experts out"
            return self._biased(self._of_some(h_BTD, gate_BTE, turn, cache, asked), gate_BTE)
        heads_BTHC = self._all(h_BTD.flatten(0, 1)).view(*h_BTD.shape[:2], -1, self._config.head_dim)
        q_BTHC, k_BTGC, v_BTGC = heads_BTHC.tensor_split((self._n_queries, self._n_queries + self._n_keys), 2)
        if self._q_norm is None:  # queries and keys are neighbours, and turn alike
            turned_BTHC = self._turn(heads_BTHC[:, :, : self._n_queries + self._n_keys], None, turn)
            q_BTHC, k_BTGC = turned_BTHC[:, :, : self._n_queries], turned_BTHC[:, :, self._n_queries :]
        else:
            q_BTHC, k_BTGC = self._turn(q_BTHC, self._q_norm, turn), self._turn(k_BTGC, self._k_norm, turn)
        scores, asked_BTHC = self._module.scores, q_BTHC[:, asked]
        o_BTEX = ATTEND[self._kv](asked_BTHC, k_BTGC, v_BTGC, cache, self._n_experts, scores)
        if gate_BTE is not None:
            o_BTEX = o_BTEX * gate_BTE.unsqueeze(-1)
        y_BTD = self._output(o_BTEX.flatten(2).flatten(0, 1)).view(*o_BTEX.shape[:2], -1)
        return self._biased(y_BTD, gate_BTE)

    def _biased(self, y_BTD: Tensor, gate_BTE: Tensor | None) -> Tensor:
        """With the output's bias: each expert's by its gate."""
        b_o = self._module.b_o
        if b_o is None:
            return y_BTD
        return y_BTD + (b_o if gate_BTE is None else gate_BTE @ b_o)

    def _gates(self, read_BTR: Tensor) -> Tensor | None:
        module = self._module
        if not isinstance(module, MixtureOfAttention):
            return None
        routing = route(router_logits(read_BTR, module.router), module.experts, bias_E=module.router_bias)
        return module.gates(routing).to(module.w_o.dtype)

    def _turn(self, x_BTHC: Tensor, scale_R: Tensor | None, rotary: Rotary | None) -> Tensor:
        """QK-norm and rotary embedding, where there are such."""
        if scale_R is not None:
            x_BTHC = qk_normed(x_BTHC, scale_R, self._config)
        return x_BTHC if rotary is None else apply_rotary(x_BTHC, *rotary)

    def _of_some(
        self, h_BTD: Tensor, gate_BTE: Tensor, rotary: Rotary | None, cache: LayerCache, asked: slice
    ) -> Tensor:
        """Of the experts that some token here has a gate for; keys and values of all go into the cache."""
        n_groups, head_dim = self._config.n_kv_heads, self._config.head_dim
        heads_BTGC = self._keys_values(h_BTD.flatten(0, 1)).view(*h_BTD.shape[:2], -1, head_dim)
        k_BTGC = self._turn(heads_BTGC[:, :, : self._n_keys], self._k_norm, rotary)
        keys_BSGC, values_BSGC, mask_BTS = cache.append(k_BTGC, heads_BTGC[:, :, self._n_keys :])
        mask_BTS = mask_BTS[:, asked] if mask_BTS is not None else None
        if rotary is not None:
            rotary = (rotary[0][..., asked, :], rotary[1][..., asked, :])
        h_BTD = h_BTD[:, asked]
        y_BTD = torch.zeros_like(h_BTD)
        for e in (gate_BTE != 0).flatten(0, 1).any(0).nonzero().flatten().tolist():
            q_BTHC = self._queries[e](h_BTD.flatten(0, 1)).view(*h_BTD.shape[:2], -1, head_dim)
            q_BTHC = self._turn(q_BTHC, self._of_expert(self._q_norm, e), rotary)
            own = slice(e * n_groups, (e + 1) * n_groups) if self._kv == "expert" else slice(None)
            o_BTHC = attend(q_BTHC, keys_BSGC[:, :, own], values_BSGC[:, :, own], mask_BTS, self._module.scores)
            gated_NX = (o_BTHC.flatten(2) * gate_BTE[..., e : e + 1]).flatten(0, 1)
            y_BTD += self._outputs[e](gated_NX).view_as(y_BTD)
        return y_BTD

    def _of_expert(self, scale_R: Tensor | None, expert: int) -> Tensor | None:
        return None if scale_R is None else scale_R.view(self._n_experts, -1)[expert]


def _in_a_row(*biases: Tensor | None) -> Tensor | None:
    """All biases, of all experts; a module has all of them or none."""
    found = [bias.flatten() for bias in biases if bias is not None]
    return torch.cat(found) if found else None


class _FFNExperts:
    def __init__(self, module: MixtureOfExperts, layout: Layout) -> None:
        self._module = module
        self._experts = expert_products(module, layout)
        self._shared = ffn_product(module.shared, layout) if module.shared is not None else None

    def __call__(self, x_ND: Tensor, text_ND: Tensor | None) -> Tensor:
        module = self._module
        logits_NE = router_logits(router_reads(x_ND, text_ND), module.router)
        routing = route(logits_NE, module.experts, bias_E=module.router_bias, balance_E=module.balance_bias)
        weights_NK = (module.gain * routing.weights_NK).to(x_ND.dtype)
        y_ND = (self._of_one if len(x_ND) == 1 else self._of_many)(x_ND, routing.experts_NK, weights_NK)
        return y_ND if self._shared is None else y_ND + self._shared(x_ND)

    def _of_one(self, x_1D: Tensor, experts_1K: Tensor, weights_1K: Tensor) -> Tensor:
        """One token needs no sorting."""
        outputs_KD = [self._experts[e](x_1D) for e in experts_1K[0].tolist()]
        return weights_1K @ torch.cat(outputs_KD)

    def _of_many(self, x_ND: Tensor, experts_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """Tokens sorted by expert; then every token's outputs are gathered, weighted and summed in one call."""
        order_M = experts_NK.flatten().argsort(stable=True)
        inverse_M = torch.empty_like(order_M).scatter_(0, order_M, torch.arange(len(order_M), device=order_M.device))
        counts = experts_NK.flatten().bincount(minlength=len(self._experts)).tolist()
        groups = torch.split(x_ND.index_select(0, order_M // experts_NK.shape[1]), counts)
        y_MD = torch.cat([expert(x) for expert, x in zip(self._experts, groups, strict=True) if len(x)])
        return F.embedding_bag(inverse_M.view_as(experts_NK), y_MD, per_sample_weights=weights_NK, mode="sum")
