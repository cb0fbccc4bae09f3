# SPDX-License-Identifier: Apache-2.0
"""A reference model in fairseq's layout: names, row order and settings."""

import argparse

import numpy as np
import safetensors.numpy

from helpers import torch_writer
from helpers.paths import GOLDEN

SIZES = dict(
    encoder_layers=2,
    encoder_embed_dim=32,
    encoder_ffn_embed_dim=64,
    encoder_attention_heads=4,
    max_positions=64,
    dropout=0.1,
    attention_dropout=0.1,
    pooler_dropout=0.0,
    activation_fn="gelu",
    pooler_activation_fn="tanh",
    arch="roberta_base",
)

# 256 bytes + 38 merges + <|endoftext|> + 5 special tokens = 300 tokens.
MERGES = [f"Ġ {chr(97 + i)}" for i in range(26)] + [
    f"{chr(97 + i)} e" for i in range(12)
]
BYTES = [
    chr(c)
    for c in list(range(33, 127))
    + list(range(161, 173))
    + list(range(174, 256))
    + list(range(256, 324))
]
TEXTS = BYTES + [pair.replace(" ", "") for pair in MERGES] + ["<|endoftext|>"]
# dict.txt's order, by the number of a token in GPT-2's vocabulary.
ORDER = np.random.RandomState(5).permutation(295).tolist()
FAIRSEQ_TOKENS = (
    ["<s>", "<pad>", "</s>", "<unk>"]
    + [TEXTS[number] for number in ORDER]
    + ["<mask>"]
)
# vocab.json's order: another one.
VOCABULARY = {
    token: i
    for i, token in enumerate(
        ["<s>", "<pad>", "</s>", "<unk>"] + TEXTS + ["<mask>"]
    )
}


def golden(name="masked_lm"):
    return safetensors.numpy.load_file(str(GOLDEN / name / "model.safetensors"))


def fairseq_state(arrays, *, is_old, head="mnli"):
    """The same weights by fairseq's names, rows in dict.txt's order."""
    order = [VOCABULARY[token] for token in FAIRSEQ_TOKENS]
    first = "decoder." if is_old else "encoder."
    body = first + "sentence_encoder."
    state = {body + "version": np.zeros(1, np.float32) + 3}
    for name, array in arrays.items():
        for new, old in (
            ("roberta.embeddings.word_embeddings", body + "embed_tokens"),
            (
                "roberta.embeddings.position_embeddings",
                body + "embed_positions",
            ),
            (
                "roberta.embeddings.LayerNorm",
                body + ("emb_layer_norm" if is_old else "layernorm_embedding"),
            ),
            ("roberta.encoder.layer.", body + "layers."),
            ("attention.output.LayerNorm", "self_attn_layer_norm"),
            ("attention.output.dense", "self_attn.out_proj"),
            ("attention.self.query", "self_attn.q_proj"),
            ("attention.self.key", "self_attn.k_proj"),
            ("attention.self.value", "self_attn.v_proj"),
            ("intermediate.dense", "fc1"),
            ("output.LayerNorm", "final_layer_norm"),
            ("output.dense", "fc2"),
            ("lm_head", first + "lm_head"),
            ("classifier", "classification_heads." + head),
        ):
            name = name.replace(new, old)
        if array.shape[0] == 300:
            array = array[order]
        if "token_type" not in name:
            state[name] = array
    if is_old:
        for layer in range(2):
            for kind in ("weight", "bias"):
                stem = body + f"layers.{layer}.self_attn."
                state[stem + "in_proj_" + kind] = np.concatenate(
                    [state.pop(f"{stem}{part}_proj.{kind}") for part in "qkv"]
                )
    if first + "lm_head.bias" in state:
        state[first + "lm_head.weight"] = state[body + "embed_tokens.weight"]
    return state


def checkpoint(state, **settings):
    return {
        "args": argparse.Namespace(**dict(SIZES, **settings)),
        "model": state,
        "optimizer_history": [{"num_updates": 5}],
        "last_optimizer_state": {"state": {0: np.zeros(3, np.float32)}},
    }


def lines_of(order):
    return "".join(f"{number} {1000 - i}\n" for i, number in enumerate(order))


def write(directory):
    """A directory with model.pt, dict.txt and merges.txt."""
    directory.mkdir()
    (directory / "dict.txt").write_text(lines_of(ORDER))
    (directory / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(MERGES) + "\n", encoding="utf-8"
    )
    torch_writer.save(
        directory / "model.pt",
        checkpoint(fairseq_state(golden(), is_old=False)),
    )
    return directory
