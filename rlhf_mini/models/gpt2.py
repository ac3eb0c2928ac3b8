"""GPT-2's forward pass over rows without padding, written out; forward.py does the same for any architecture.

The weights are those of transformers' model, and so are their gradients. Time is saved between the matrix products:
queries, keys and values stay together until attention needs them apart; the last layer goes on only at the positions
asked for; and a decoding step of a few rows does not walk through sixty modules (docs/performance.md).
tests/models/test_gpt2.py compares values and gradients with the model's own.

Shapes: N tokens of the rows, n positions asked for, B rows, T the longest of them, H heads, D width of a head.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, addmm, nn
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Model, PreTrainedModel
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Attention, GPT2Block
from transformers.pytorch_utils import Conv1D

from rlhf_mini.models.rows import Cache, Rows

# The modules that GPT2Forward bypasses. An adapter or a quantized layer is of another type.
KNOWN = {GPT2LMHeadModel, GPT2ForSequenceClassification, GPT2Model, GPT2Block, GPT2Attention, GPT2MLP, Conv1D}
KNOWN |= {nn.ModuleList, nn.Embedding, nn.LayerNorm, nn.Linear, nn.Dropout}


def fits(model: PreTrainedModel) -> bool:
    """Whether GPT2Forward computes what the model itself would: a plain GPT-2, without hooks, adapters or dropout."""
    if type(model) not in (GPT2LMHeadModel, GPT2ForSequenceClassification):
        return False
    config = model.config
    if config.add_cross_attention or config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
        return False
    known = KNOWN | {type(block.mlp.act) for block in model.transformer.h}
    for module in model.modules():
        if type(module) not in known or module._forward_hooks or module._forward_pre_hooks:
            return False
        if isinstance(module, nn.Dropout) and module.training and module.p > 0:
            return False
    return True


class GPT2Forward:
    """The forward pass of a GPT-2 that `fits`, as a function of (ids, rows, keep)."""

    def __init__(self, model: Any) -> None:
        trunk = model.transformer
        self.heads, self.width, self.epsilon = model.config.n_head, (model.config.n_embd,), trunk.ln_f.eps
        self.embeddings = trunk.wte.weight, trunk.wpe.weight
        self.blocks = [
            [
                (part.weight, part.bias)
                for part in (b.ln_1, b.attn.c_attn, b.attn.c_proj, b.ln_2, b.mlp.c_fc, b.mlp.c_proj)
            ]
            for b in trunk.h
        ]
        self.activation = trunk.h[0].mlp.act
        self.ln_f = trunk.ln_f.weight, trunk.ln_f.bias
        self.head = model.lm_head.weight if isinstance(model, GPT2LMHeadModel) else model.score.weight

    def __call__(self, ids: Tensor, rows: Rows | Cache, keep: Tensor | None = None) -> Tensor:
        """ids (N,) -> logits (n, V or labels) at the positions `keep` (n,), by default at all N."""
        tokens, positions = self.embeddings
        x = F.embedding(ids, tokens) + F.embedding(rows.position_ids, positions)  # (N, H * D)
        for layer, (ln_1, qkv_proj, attn_proj, ln_2, fc, mlp_proj) in enumerate(self.blocks):
            qkv = self.linear(self.layer_norm(x, ln_1), qkv_proj)  # (N, 3 * H * D)
            padded = rows.unpack(qkv).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, H, D)
            attended = rows.attend(layer, *padded.permute(2, 0, 3, 1, 4))  # (B, H, T, D)
            attended = rows.pack(attended.transpose(1, 2)).flatten(1)  # (N, H * D)
            if keep is not None and layer == len(self.blocks) - 1:
                attended, x = attended[keep], x[keep]  # (n, H * D)
            x = x + self.linear(attended, attn_proj)
            x = x + self.linear(self.activation(self.linear(self.layer_norm(x, ln_2), fc)), mlp_proj)
        return F.linear(self.layer_norm(x, self.ln_f), self.head)

    def layer_norm(self, x: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(x, self.width, *weights, self.epsilon)

    @staticmethod
    def linear(x: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
        """transformers' Conv1D: x (., in) times weight (in, out), plus bias (out,)."""
        weight, bias = weights
        return addmm(bias, x, weight)
