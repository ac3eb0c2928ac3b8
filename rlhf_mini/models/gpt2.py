"""GPT-2's forward pass over packed rows, written out: what packing.py does for any model, by a shorter way.

The weights are those of transformers' model, and so are their gradients. What is saved lies between the matrix
products: queries, keys and values stay together until attention needs them apart; in the last layer, positions that
nobody asked for stop where attention has read them; and for the few rows of a decoding step, walking through sixty
modules takes as long as the arithmetic (docs/performance.md). tests/test_gpt2.py compares values and gradients with
the model's own.

Shapes: N tokens of packed rows, n of them asked for, B rows, T the longest of them, H heads, D width of a head.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, addmm, nn
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Model, PreTrainedModel
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Attention, GPT2Block
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from rlhf_mini.models.packing import Cache, Rows

# The modules that `reader` passes over. An adapter or a quantized layer is another type.
KNOWN = {GPT2LMHeadModel, GPT2ForSequenceClassification, GPT2Model, GPT2Block, GPT2Attention, GPT2MLP, Conv1D}
KNOWN |= {nn.ModuleList, nn.Embedding, nn.LayerNorm, nn.Linear, nn.Dropout}


def fits(model: PreTrainedModel) -> bool:
    """Whether `reader` reads as the model itself would: a GPT-2 as in the paper, without hooks, adapters or dropout."""
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


def reader(model: Any) -> Callable[[Tensor, "Rows | Cache", Tensor | None], Tensor]:
    """What `packing.packed` gives, for a model that `fits`."""
    trunk, heads, width = model.transformer, model.config.n_head, (model.config.n_embd,)
    head = model.lm_head.weight if isinstance(model, GPT2LMHeadModel) else model.score.weight  # (V or labels, H * D)
    layers = [
        [(part.weight, part.bias) for part in (b.ln_1, b.attn.c_attn, b.attn.c_proj, b.ln_2, b.mlp.c_fc, b.mlp.c_proj)]
        for b in trunk.h
    ]
    activation, epsilon = trunk.h[0].mlp.act, model.config.layer_norm_epsilon

    def read(ids: Tensor, rows: "Rows | Cache", keep: Tensor | None = None) -> Tensor:
        x = F.embedding(ids, trunk.wte.weight) + F.embedding(rows.position_ids, trunk.wpe.weight)  # (N, H * D)
        for index, (ln_1, c_attn, attn_proj, ln_2, c_fc, mlp_proj) in enumerate(layers):
            together = addmm(c_attn[1], F.layer_norm(x, width, *ln_1, epsilon), c_attn[0])  # (N, 3 * H * D)
            padded = rows.unpack(together).unflatten(-1, (3, heads, -1))  # (B, T, 3, H, D)
            attended = rows.attend(index, *padded.permute(2, 0, 3, 1, 4))  # (B, H, T, D)
            attended = rows.pack(attended.transpose(1, 2)).flatten(1)  # (N, H * D)
            if keep is not None and index == len(layers) - 1:
                attended, x = attended[keep], x[keep]  # (n, H * D)
            x = x + addmm(attn_proj[1], attended, attn_proj[0])
            hidden = activation(addmm(c_fc[1], F.layer_norm(x, width, *ln_2, epsilon), c_fc[0]))  # (n, 4 * H * D)
            x = x + addmm(mlp_proj[1], hidden, mlp_proj[0])
        return F.linear(F.layer_norm(x, width, trunk.ln_f.weight, trunk.ln_f.bias, epsilon), head)

    return read
