"""Which tensor is stored in which blocks, for each quantisation that can be asked for.

It follows llama.cpp's own choices: vectors stay 32-bit floats; under ``q4_0`` and ``q4_k_m`` the output layer (or the
embeddings, where they are the output too) is Q6_K; ``q4_k_m`` gives half of the value and down projections Q6_K and fused
queries, keys and values Q5_K. Rows that do not divide by 256 get Q8_0 in place of Q4_K, Q5_K and Q6_K, and those that do
not divide by 32 get 16-bit floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, get_args

from cloister.inference.conversion.blocks import BF16, F16, F32, Q4_0, Q8_0, BlockType
from cloister.inference.conversion.configuration import Shape
from cloister.inference.conversion.super_blocks import Q4_K, Q5_K, Q6_K
from cloister.inference.conversion.tensors import Wanted

Quantisation = Literal["f16", "bf16", "q8_0", "q4_0", "q4_k_m"]
QUANTISATIONS: Final[tuple[Quantisation, ...]] = get_args(Quantisation)
FILE_TYPES: Final[Mapping[Quantisation, int]] = {"f16": 1, "q4_0": 2, "q8_0": 7, "q4_k_m": 15, "bf16": 32}
"""llama.cpp's ``general.file_type``."""
_USUAL: Final[Mapping[Quantisation, BlockType]] = {
    "f16": F16,
    "bf16": BF16,
    "q8_0": Q8_0,
    "q4_0": Q4_0,
    "q4_k_m": Q4_K,
}


def block_type(tensor: Wanted, shape: Shape, quantisation: Quantisation) -> BlockType:
    """The blocks of one tensor."""
    if len(tensor.shape) == 1:
        return F32
    kind = _USUAL[quantisation]
    output = "token_embd.weight" if shape.tied else "output.weight"
    if quantisation in ("q4_0", "q4_k_m") and tensor.target == output:
        kind = Q6_K
    elif quantisation == "q4_k_m" and tensor.layer is not None:
        name = tensor.target.split(".")[2]
        if name == "attn_qkv":
            kind = Q5_K
        elif name in ("attn_v", "ffn_down") and _sensitive(tensor.layer, shape.layers):
            kind = Q6_K
    row = tensor.shape[-1]
    if kind.length == 256 and row % 256:
        kind = Q8_0
    return F16 if row % kind.length else kind


def _sensitive(layer: int, layers: int) -> bool:
    """The first and last eighth, and each third between: llama.cpp's ``use_more_bits``."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
