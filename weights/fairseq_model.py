# SPDX-License-Identifier: Apache-2.0
"""fairseq's RoBERTa checkpoints with Hugging Face's names and order.

Row i of fairseq's embeddings is the token i of dict.txt: `<s>`, `<pad>`,
`</s>`, `<unk>`, then the file's lines, then `<mask>`. A line names a token by
its number in GPT-2's vocabulary ("13 850314647"), or by its text, as the
model's authors chose. The text of a number follows from GPT-2's encoder.json,
or from the merges alone: first the 256 bytes, then one token for each merge,
then `<|endoftext|>`.

Source: fairseq/data/dictionary.py, fairseq/models/roberta/model.py,
fairseq/tasks/masked_lm.py; openai/gpt-2, src/encoder.py.
"""

import functools
import os
import re
import typing

import numpy as np

import tokenization
from common import errors, files
from weights import lazy_tensors, model_directory, torch_file

# The symbols of bytes in the order of their numbers in GPT-2.
_BYTE_TOKENS = sorted(tokenization.byte_symbols())
_PADDING = re.compile(r"madeupword\d+$")

_LAYER_PARTS = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.output.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "output.LayerNorm",
}
_EMBEDDINGS = "roberta.embeddings."
_WORDS = _EMBEDDINGS + "word_embeddings.weight"
_POSITIONS = _EMBEDDINGS + "position_embeddings.weight"
_NAMES = {
    "sentence_encoder.embed_tokens": _EMBEDDINGS + "word_embeddings",
    "sentence_encoder.embed_positions": _EMBEDDINGS + "position_embeddings",
    "sentence_encoder.emb_layer_norm": _EMBEDDINGS + "LayerNorm",
    "sentence_encoder.layernorm_embedding": _EMBEDDINGS + "LayerNorm",
    "lm_head.dense": "lm_head.dense",
    "lm_head.layer_norm": "lm_head.layer_norm",
    "lm_head": "lm_head",
}
_LAYER = re.compile(r"sentence_encoder\.layers\.(\d+)\.(.+)$")
_FUSED = re.compile(
    r"(sentence_encoder\.layers\.\d+\.self_attn)"
    r"\.in_proj_(weight|bias)$"
)
_HEAD = re.compile(
    r"classification_heads\.([^.]+)\.(dense|out_proj)"
    r"\.(weight|bias)$"
)
_BUFFERS = (
    "sentence_encoder.version",
    "sentence_encoder.embed_positions._float_tensor",
)


class Files(typing.NamedTuple):
    """A checkpoint and the files beside it; "" if there is none."""

    model: str  # model.pt
    dictionary: str  # dict.txt
    vocab: str  # vocab.json, whose order the rows get
    merges: str  # merges.txt, GPT-2's vocab.bpe
    encoder: str  # GPT-2's encoder.json
    config: str  # config.json for sizes that model.pt lacks


class Model(typing.NamedTuple):
    """A checkpoint as convert_checkpoint takes it."""

    tensors: typing.Dict[str, lazy_tensors.Tensor]  # by Hugging Face's name
    config: typing.Dict[str, typing.Any]  # config.json's keys
    left_out: typing.List[typing.Tuple[str, str]]  # (fairseq's name, reason)
    vocabulary: typing.Optional[typing.Dict[str, int]]  # None if not known


def find_files(path: str, vocab_file: str = "", merges_file: str = "") -> Files:
    """The files of a checkpoint.

    Args:
      path: model.pt or its directory.
      vocab_file, merges_file: files to use instead of those beside it.

    Raises:
      errors.UserError: model.pt or dict.txt does not exist.
    """
    if os.path.isdir(path):
        path = os.path.join(path, "model.pt")

    beside = functools.partial(files.beside, path)
    for name in (os.path.basename(path), "dict.txt"):
        if not beside(name):
            raise errors.UserError(
                f"{os.path.join(os.path.dirname(path), name)} does not exist; "
                "expected fairseq's model.pt with dict.txt beside it"
            )
    return Files(
        model=path,
        dictionary=beside("dict.txt"),
        vocab=vocab_file or beside("vocab.json"),
        merges=merges_file or beside("merges.txt") or beside("vocab.bpe"),
        encoder=beside("encoder.json"),
        config=beside("config.json"),
    )


def load(paths: Files, head: typing.Optional[str] = None) -> Model:
    """A checkpoint, its rows in the order of a vocabulary.

    Args:
      paths: the checkpoint; without a vocabulary the rows keep their order.
      head: the classification head to convert, None for the only one.

    Raises:
      errors.UserError: a file is damaged, missing or of another model.
    """
    checkpoint = torch_file.load(paths.model)
    state = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict):
        raise errors.UserError(
            f'{paths.model}: no "model" in it; expected a checkpoint that '
            "fairseq saved"
        )
    tensors, left_out = _renamed(paths.model, state, head)
    left_out += [
        (name, "not a weight of the model")
        for name in checkpoint
        if name != "model"
    ]
    symbols = read_dictionary(paths.dictionary)
    table = tensors.get(_WORDS)
    if table is not None and table.shape[:1] != (len(symbols),):
        raise errors.UserError(
            f"{paths.model} has embeddings of "
            f"{lazy_tensors.shape_text(table.shape)}, but {paths.dictionary} "
            f"gives {len(symbols)} tokens (4 + its lines + <mask>); use the "
            "dict.txt of the model"
        )
    tokens = _texts(symbols, paths.merges, paths.encoder)
    config = _config(paths, checkpoint, tensors)
    vocabulary = None
    if paths.vocab:
        ids = model_directory.check_ids(
            files.read_json(paths.vocab, "a vocab.json"),
            paths.vocab,
            len(symbols),
        )
        tensors = _in_order(
            tensors, row_order(symbols, tokens, ids, paths.vocab)
        )
        config.update(_special_ids(ids, paths.vocab))
    elif tokens:
        vocabulary = {token: row for row, token in enumerate(tokens)}
        if len(vocabulary) != len(tokens):
            raise errors.UserError(
                f"{paths.dictionary} contains a token twice; use the dict.txt "
                "of the model"
            )
    return Model(tensors, config, left_out, vocabulary)


def _special_ids(ids, vocab_file):
    """config.json's keys for the special tokens of a vocabulary."""
    if ids["<pad>"] != 1:
        raise errors.UserError(
            f"{vocab_file}: <pad> has the id {ids['<pad>']}; fairseq's "
            "positions start after it at 2, so it must be 1"
        )
    return {"bos_token_id": ids["<s>"], "eos_token_id": ids["</s>"]}


def _stem(name):
    """fairseq's name without `encoder.` or, in old files, `decoder.`."""
    return re.sub(r"^(encoder|decoder)\.", "", name)


def _renamed(path, state, head):
    """({Hugging Face's name: Tensor}, [(fairseq's name, reason)])."""
    state = torch_file.named(f'{path} under "model"', state)
    heads = sorted({m.group(1) for m in map(_HEAD.match, state) if m})
    if head is None and len(heads) > 1:
        raise errors.UserError(
            f"{path} has the classification heads {', '.join(heads)}; choose "
            "one with --classification_head"
        )
    if head is not None and head not in heads:
        raise errors.UserError(
            f"--classification_head is {head!r}, but {path} has "
            f"{', '.join(heads) or 'no classification head'}"
        )
    tensors = {}
    left_out = []
    for name, value in state.items():
        reason = _reason_to_leave_out(name, head)
        if reason:
            left_out.append((name, reason))
            continue
        for new_name, tensor in _hf_tensors(name, value):
            if new_name in tensors:
                raise errors.UserError(
                    f"{path} contains {new_name} twice: as "
                    f"{tensors[new_name].source} and as {name}"
                )
            tensors[new_name] = tensor
    _add_token_types(tensors)
    return tensors, left_out


def _reason_to_leave_out(name, head):
    if _stem(name) in _BUFFERS:
        return "not a weight"
    match = _HEAD.match(name)
    if match and head is not None and match.group(1) != head:
        return "another classification head"
    return None


def _hf_tensors(name, tensor):
    """[(Hugging Face's name, Tensor)] of one of fairseq's tensors."""
    stem = _stem(name)
    fused = _FUSED.match(stem)
    if fused and tensor.shape and tensor.shape[0] % 3 == 0:
        size = tensor.shape[0] // 3
        return [
            (
                _hf_name(f"{fused.group(1)}.{part}.{fused.group(2)}"),
                lazy_tensors.rows(tensor, number * size, (number + 1) * size),
            )
            for number, part in enumerate(("q_proj", "k_proj", "v_proj"))
        ]
    head = _HEAD.match(name)
    if head:
        _, layer, kind = head.groups()
        return [(f"classifier.{layer}.{kind}", tensor)]
    return [(_hf_name(stem) or name, tensor)]


def _hf_name(stem):
    """Hugging Face's name, None for a name that fairseq's RoBERTa lacks."""
    if stem == "lm_head.weight":
        return "lm_head.decoder.weight"
    base, _, kind = stem.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    layer = _LAYER.match(base)
    if layer and layer.group(2) in _LAYER_PARTS:
        number, part = layer.groups()
        return f"roberta.encoder.layer.{number}.{_LAYER_PARTS[part]}.{kind}"
    return f"{_NAMES[base]}.{kind}" if base in _NAMES else None


def source_name(hf_name: str) -> str:
    """fairseq's name of a weight, for a message that it is missing."""
    layer = re.match(r"roberta\.encoder\.layer\.(\d+)\.", hf_name)
    stems = list(_NAMES)
    if layer:
        start = f"sentence_encoder.layers.{layer.group(1)}."
        stems = [start + part for part in _LAYER_PARTS]
    for stem in stems:
        for kind in (".weight", ".bias"):
            if _hf_name(stem + kind) == hf_name:
                return f"encoder.{stem}{kind}"
    return hf_name.replace("classifier.", "classification_heads.*.")


def _add_token_types(tensors):
    """Adds the one token type that fairseq does not have: a row of zeros."""
    table = tensors.get(_WORDS)
    if table is not None and len(table.shape) == 2:
        tensors[_EMBEDDINGS + "token_type_embeddings.weight"] = (
            lazy_tensors.zeros(
                table.dtype,
                (1, table.shape[1]),
                "(zeros: fairseq has no token types)",
            )
        )


def _in_order(tensors, order):
    """The tensors, those with a row for each token in another order."""
    if np.array_equal(order, np.arange(len(order))):
        return tensors
    changed = dict(tensors)
    for name in (_WORDS, "lm_head.bias", "lm_head.decoder.weight"):
        if name in tensors and tensors[name].shape[:1] == (len(order),):
            changed[name] = lazy_tensors.reordered(tensors[name], order)
    return changed


def _read_lines(path, kind):
    """The lines of a UTF-8 text without the one that the last newline ends."""
    try:
        text = files.read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise errors.UserError(
            f"{path} is not UTF-8 ({error}); expected {kind}"
        ) from error
    return text.rstrip("\n").split("\n")


def read_dictionary(path: str) -> typing.List[str]:
    """The symbols of dict.txt in fairseq's order, special ones included.

    Example: the lines "13 850314647" and "262 800385005" give
    ["<s>", "<pad>", "</s>", "<unk>", "13", "262", "<mask>"].

    Raises:
      errors.UserError: a line is not a token and its count, or a token is
        repeated.
    """
    symbols = list(tokenization.SPECIAL_TOKENS[:-1])  # all but <mask>
    known = set(symbols)
    for number, line in enumerate(_read_lines(path, "fairseq's dict.txt"), 1):
        match = re.match(r"(.+) \d+( #fairseq:overwrite)?\s*$", line)
        if not match:
            raise errors.UserError(
                f"{path}, line {number} is {lazy_tensors.quoted(line)}; "
                "expected a token and its count"
            )
        symbol, is_overwriting = match.groups()
        if symbol in known and not is_overwriting:
            raise errors.UserError(
                f"{path}, line {number} repeats {lazy_tensors.quoted(symbol)}; "
                "use the dict.txt of the model"
            )
        known.add(symbol)
        symbols.append(symbol)
    if tokenization.MASK not in known:
        symbols.append(tokenization.MASK)
    return symbols


def _texts(symbols, merges_file, encoder_file):
    """The text of each symbol; None if the texts of numbers are not known."""
    words = [
        symbol
        for symbol in symbols
        if symbol not in tokenization.SPECIAL_TOKENS
        and not _PADDING.match(symbol)
    ]
    if not all(re.match(r"[0-9]{1,9}$", word) for word in words):
        return list(symbols)
    if encoder_file:
        ids = files.read_json(encoder_file, "GPT-2's encoder.json")
        numbers = {str(number): token for token, number in ids.items()}
    elif merges_file:
        numbers = _numbered(gpt2_tokens(merges_file))
    else:
        return None
    for word in words:
        if word not in numbers:
            raise errors.UserError(
                f"dict.txt has the token number {word}, but "
                f"{encoder_file or merges_file} gives {len(numbers)} tokens; "
                "use the file of the model"
            )
    return [numbers.get(symbol, symbol) for symbol in symbols]


def _numbered(tokens):
    return {str(number): token for number, token in enumerate(tokens)}


def gpt2_tokens(merges_file: str) -> typing.List[str]:
    """GPT-2's tokens in the order of their numbers, from its merges.

    Raises:
      errors.UserError: a line is not two tokens.
    """
    lines = _read_lines(merges_file, "merges.txt")
    if lines[0].startswith("#version"):
        del lines[0]
    pairs = [line.rstrip("\r").split(" ") for line in lines if line.strip()]
    if not all(len(pair) == 2 for pair in pairs):
        raise errors.UserError(
            f"{merges_file} has a line that is not two tokens; expected "
            "merges.txt"
        )
    return [*_BYTE_TOKENS, *map("".join, pairs), "<|endoftext|>"]


def row_order(
    symbols: typing.List[str],
    tokens: typing.Optional[typing.List[str]],
    ids: typing.Dict[str, int],
    vocab_file: str,
) -> np.ndarray:
    """The row in fairseq's order of each id of a vocabulary.

    Rows of padding words that the vocabulary lacks get its unused ids.

    Args:
      symbols: those of dict.txt.
      tokens: their texts, or None.
      ids: {token: id} of the vocabulary.
      vocab_file: its name, for messages.

    Returns:
      int64 [V].

    Raises:
      errors.UserError: the two do not contain the same tokens.
    """
    names = symbols if tokens is None else tokens
    if tokens is None and not all(symbol in ids for symbol in symbols):
        _check_byte_rows(symbols, ids, vocab_file)
        return np.arange(len(symbols))
    absent = [row for row, name in enumerate(names) if name not in ids]
    differences = [
        f"{len(words)} are only in {place}, such as "
        f"{lazy_tensors.quoted(min(words))}"
        for place, words in (
            ("vocab.json", set(ids).difference(names)),
            (
                "dict.txt",
                [names[i] for i in absent if not _PADDING.match(names[i])],
            ),
        )
        if words
    ]
    if differences:
        raise errors.UserError(
            f"{vocab_file} and dict.txt do not contain the same tokens: "
            f"{'; '.join(differences)}; without --vocab_file, a vocab.json in "
            "the order of the model is written"
        )
    order = np.full(len(symbols), -1, np.int64)
    for row, name in enumerate(names):
        if name in ids:
            order[ids[name]] = row
    order[order < 0] = absent
    return order


def _check_byte_rows(symbols, ids, vocab_file):
    """Checks by the tokens of single bytes that both orders are the same.

    They have the same numbers in each vocabulary of GPT-2's kind; only the
    merges tell which tokens the numbers from 256 on are.
    """
    numbers = _numbered(_BYTE_TOKENS)
    rows = {
        numbers.get(symbol, symbol): row
        for row, symbol in enumerate(symbols)
        if symbol in (*numbers, *tokenization.SPECIAL_TOKENS)
    }
    if len(ids) != len(symbols) or any(
        ids.get(token) != row for token, row in rows.items()
    ):
        raise errors.UserError(
            f"dict.txt and {vocab_file} have tokens in different orders, and "
            "the tokens of the numbers in dict.txt are not known; pass "
            "--merges_file or put GPT-2's encoder.json beside model.pt"
        )


def _options(checkpoint):
    """The settings of the training: `args`, in newer files `cfg.model`."""
    config = torch_file.attributes(checkpoint.get("cfg"))
    return {
        **torch_file.attributes(config.get("model")),
        **torch_file.attributes(checkpoint.get("args")),
    }


def _size(tensors, name, axis):
    """A dimension of a weight; 0 if the weight does not exist."""
    tensor = tensors.get(name)
    return tensor.shape[axis] if tensor and len(tensor.shape) > axis else 0


def _config(paths, checkpoint, tensors):
    """config.json's keys: sizes from the settings, else from the weights."""
    options = _options(checkpoint)
    _check_activations(paths.model, options, tensors)
    known = files.read_json(paths.config) if paths.config else {}

    def setting(name, key, default=None):
        value = options.get(name, known.get(key, default))
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise errors.UserError(
                f'{paths.model} does not have {name} in its "args" or "cfg"; '
                f"put a config.json with {key} beside it"
            )
        return value

    layers = "roberta.encoder.layer."
    numbers = {n.split(".")[3] for n in tensors if n.startswith(layers)}
    positions = _size(tensors, _POSITIONS, 0)
    if isinstance(options.get("max_positions"), int):
        # Positions start after the id of <pad>, which is 1.
        positions = options["max_positions"] + 2
    pooler_dropout = options.get("pooler_dropout")
    return {
        "architectures": ["RobertaModel"],
        "attention_probs_dropout_prob": setting(
            "attention_dropout", "attention_probs_dropout_prob", 0.1
        ),
        "bos_token_id": 0,
        "classifier_dropout": (
            pooler_dropout if isinstance(pooler_dropout, float) else None
        ),
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": setting("dropout", "hidden_dropout_prob", 0.1),
        "hidden_size": setting(
            "encoder_embed_dim", "hidden_size", _size(tensors, _WORDS, 1)
        ),
        "initializer_range": 0.02,
        "intermediate_size": setting(
            "encoder_ffn_embed_dim",
            "intermediate_size",
            _size(tensors, layers + "0.intermediate.dense.weight", 0),
        ),
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": positions,
        "model_type": "roberta",
        "num_attention_heads": setting(
            "encoder_attention_heads", "num_attention_heads"
        ),
        "num_hidden_layers": setting(
            "encoder_layers", "num_hidden_layers", len(numbers)
        ),
        "pad_token_id": 1,
        "type_vocab_size": 1,
        "vocab_size": _size(tensors, _WORDS, 0),
    }


def _check_activations(path, options, tensors):
    """Rejects a model that Hugging Face's RoBERTa does not compute."""
    name = options.get("activation_fn", "gelu")
    if name != "gelu":
        raise errors.UserError(
            f"{path} has the activation {lazy_tensors.quoted(name)}; only gelu "
            "can be converted"
        )
    pooler = options.get("pooler_activation_fn", "tanh")
    if "classifier.dense.weight" in tensors and pooler != "tanh":
        raise errors.UserError(
            f"{path} has a classification head with the activation "
            f"{lazy_tensors.quoted(pooler)}; only tanh can be converted"
        )
