# SPDX-License-Identifier: Apache-2.0
"""fairseq's RoBERTa checkpoints in Hugging Face's names and order.

A row of fairseq's embeddings belongs to the token that stands in that place in
dict.txt: `<s>`, `<pad>`, `</s>`, `<unk>`, then the file's lines, then `<mask>`.
A line names a token by its number in GPT-2's vocabulary ("13 850314647"), or by
its text where the model's makers chose so. Which text a number means follows
from GPT-2's encoder.json, or from the merges alone: the 256 bytes come first,
then one token for each merge, then `<|endoftext|>`.

Source: fairseq/data/dictionary.py, fairseq/models/roberta/model.py,
fairseq/tasks/masked_lm.py; openai/gpt-2, src/encoder.py.
"""

import itertools
import re
import typing

import numpy as np

from common import errors, files
from weights import lazy_tensors, torch_file

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
MASK_TOKEN = "<mask>"
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
_NAMES = {
    "sentence_encoder.embed_tokens": "roberta.embeddings.word_embeddings",
    "sentence_encoder.embed_positions": "roberta.embeddings.position_embeddings",
    "sentence_encoder.emb_layer_norm": "roberta.embeddings.LayerNorm",
    "sentence_encoder.layernorm_embedding": "roberta.embeddings.LayerNorm",
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


class Model(typing.NamedTuple):
    """A checkpoint as convert_checkpoint takes it."""

    tensors: typing.Dict[str, lazy_tensors.Tensor]  # by Hugging Face's name
    config: dict  # config.json's keys
    left_out: list  # (fairseq's name, reason)
    vocabulary: typing.Optional[dict]  # token -> row, None if not known


def load(
    path,
    dictionary_file,
    *,
    vocab_file=None,
    merges_file=None,
    encoder_file=None,
    config_file=None,
    head=None,
):
    """A checkpoint, its rows in the order of a vocabulary.

    Args:
      path: model.pt.
      dictionary_file: dict.txt.
      vocab_file: vocab.json whose order the rows get; None keeps fairseq's.
      merges_file: merges.txt (GPT-2's vocab.bpe) or None.
      encoder_file: GPT-2's encoder.json or None.
      config_file: config.json for sizes that the checkpoint lacks, or None.
      head: name of the classification head to take, None for the only one.

    Raises:
      errors.UserError: what is damaged, missing or does not go together.
    """
    checkpoint = torch_file.load(path)
    state = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict):
        raise errors.UserError(
            f'{path} holds no "model"; expected a checkpoint that fairseq saved'
        )
    tensors, left_out = _renamed(path, state, head)
    left_out += [
        (name, "no weight of the model")
        for name in checkpoint
        if name != "model"
    ]
    symbols = read_dictionary(dictionary_file)
    table = tensors.get("roberta.embeddings.word_embeddings.weight")
    if table is not None and table.shape[:1] != (len(symbols),):
        raise errors.UserError(
            f"{path} has embeddings of {lazy_tensors.shape_text(table.shape)}, "
            f"but {dictionary_file} makes {len(symbols)} tokens (4 + its lines "
            "+ <mask>); take the dict.txt that the model was trained with"
        )
    tokens = _texts(symbols, merges_file, encoder_file)
    config = _config(path, checkpoint, tensors, config_file)
    vocabulary = None
    if vocab_file:
        ids = lazy_tensors.read_vocabulary(vocab_file, len(symbols))
        tensors = _in_order(
            tensors, row_order(symbols, tokens, ids, vocab_file)
        )
        config.update(_special_ids(ids, vocab_file))
    elif tokens:
        vocabulary = {token: row for row, token in enumerate(tokens)}
        if len(vocabulary) != len(tokens):
            raise errors.UserError(f"{dictionary_file} names a token twice")
    return Model(tensors, config, left_out, vocabulary)


def _special_ids(ids, vocab_file):
    """config.json's keys for the special tokens of a vocabulary."""
    if ids["<pad>"] != 1:
        raise errors.UserError(
            f"{vocab_file} gives <pad> the id {ids['<pad>']}; positions of "
            "fairseq's models start behind 1, so it must be 1"
        )
    return {"bos_token_id": ids["<s>"], "eos_token_id": ids["</s>"]}


def _stem(name):
    """fairseq's name without `encoder.` or, as it once was, `decoder.`."""
    for prefix in ("encoder.", "decoder."):
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def _renamed(path, state, head):
    """({Hugging Face's name: Tensor}, [(fairseq's name, reason)])."""
    tensors, left_out = {}, []
    heads = sorted(
        {
            match.group(1)
            for match in map(
                _HEAD.match, filter(lambda name: isinstance(name, str), state)
            )
            if match
        }
    )
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
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(
            value, lazy_tensors.Tensor
        ):
            raise errors.UserError(
                f'{path}: {lazy_tensors.quoted(str(name))} under "model" is '
                "no tensor; expected weights alone"
            )
        value = value._replace(source=name)
        reason = _reason_to_leave_out(name, head)
        if reason:
            left_out.append((name, reason))
            continue
        for new_name, tensor in _hf_tensors(name, value):
            if new_name in tensors:
                raise errors.UserError(
                    f"{path} holds {new_name} in two ways: "
                    f"{tensors[new_name].source} and {name}"
                )
            tensors[new_name] = tensor
    _add_token_types(tensors)
    return tensors, left_out


def _reason_to_leave_out(name, head):
    if _stem(name) in _BUFFERS:
        return "no weight"
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
        return [("classifier.%s.%s" % head.group(2, 3), tensor)]
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
        return f"roberta.encoder.layer.{layer.group(1)}.{_LAYER_PARTS[layer.group(2)]}.{kind}"
    return f"{_NAMES[base]}.{kind}" if base in _NAMES else None


def source_name(hf_name):
    """What fairseq calls a weight, for a message that it is missing."""
    base, _, kind = hf_name.rpartition(".")
    match = re.match(r"roberta\.encoder\.layer\.(\d+)\.(.+)$", base)
    for fairseq, part in _LAYER_PARTS.items():
        if match and match.group(2) == part:
            return f"encoder.sentence_encoder.layers.{match.group(1)}.{fairseq}.{kind}"
    for fairseq, name in _NAMES.items():
        if base == name:
            return f"encoder.{fairseq}.{kind}"
    return hf_name.replace("classifier.", "classification_heads.*.")


def _add_token_types(tensors):
    """fairseq's RoBERTa has no token types: their one row is zero."""
    table = tensors.get("roberta.embeddings.word_embeddings.weight")
    if (
        table is not None
        and len(table.shape) == 2
        and (table.dtype in lazy_tensors.DTYPES)
    ):
        tensors["roberta.embeddings.token_type_embeddings.weight"] = (
            lazy_tensors.zeros(
                table.dtype,
                (1, table.shape[1]),
                "(zeros: fairseq has no token types)",
            )
        )


def _in_order(tensors, order):
    """The tensors that have one row a token, their rows in another order."""
    if np.array_equal(order, np.arange(len(order))):
        return tensors
    changed = dict(tensors)
    for name in (
        "roberta.embeddings.word_embeddings.weight",
        "lm_head.bias",
        "lm_head.decoder.weight",
    ):
        if name in tensors and tensors[name].shape[:1] == (len(order),):
            changed[name] = lazy_tensors.reordered(tensors[name], order)
    return changed


def read_dictionary(path):
    """The symbols of dict.txt in fairseq's order, special ones included.

    Example: the lines "13 850314647" and "262 800385005" give
    ["<s>", "<pad>", "</s>", "<unk>", "13", "262", "<mask>"].
    """
    try:
        text = files.read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise errors.UserError(
            f"{path} is not UTF-8 ({error}); expected fairseq's dict.txt"
        ) from error
    symbols = list(SPECIAL_TOKENS)
    known = set(symbols)
    for number, line in enumerate(text.rstrip("\n").split("\n"), 1):
        match = re.match(r"(.+) \d+( #fairseq:overwrite)?\s*$", line)
        if not match:
            raise errors.UserError(
                f"{path}, line {number} is {lazy_tensors.quoted(line)}; "
                "expected a token and its count"
            )
        symbol = match.group(1)
        if symbol in known and not match.group(2):
            raise errors.UserError(
                f"{path}, line {number} names {lazy_tensors.quoted(symbol)} a "
                "second time"
            )
        known.add(symbol)
        symbols.append(symbol)
    if MASK_TOKEN not in known:
        symbols.append(MASK_TOKEN)
    return symbols


def _texts(symbols, merges_file, encoder_file):
    """The token of each symbol; None where nothing says what numbers mean."""
    words = [
        symbol
        for symbol in symbols
        if symbol not in SPECIAL_TOKENS
        and symbol != MASK_TOKEN
        and not _PADDING.match(symbol)
    ]
    if not all(re.match(r"[0-9]{1,9}$", word) for word in words):
        return list(symbols)
    if encoder_file:
        source = encoder_file
        numbers = {
            str(number): token
            for token, number in files.parse_json(
                files.read_bytes(encoder_file), encoder_file
            ).items()
        }
    elif merges_file:
        source = merges_file
        numbers = {
            str(number): token
            for number, token in enumerate(gpt2_tokens(merges_file))
        }
    else:
        return None
    for word in words:
        if word not in numbers:
            raise errors.UserError(
                f"dict.txt names token number {word}, but {source} makes "
                f"{len(numbers)} tokens; take the file that the model was "
                "trained with"
            )
    return [numbers.get(symbol, symbol) for symbol in symbols]


def gpt2_tokens(merges_file):
    """GPT-2's tokens in the order of their numbers, from its merges."""
    try:
        lines = files.read_bytes(merges_file).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise errors.UserError(
            f"{merges_file} is not UTF-8 ({error}); expected merges.txt"
        ) from error
    if lines[0].startswith("#version"):
        del lines[0]
    pairs = [line.rstrip("\r").split(" ") for line in lines if line.strip()]
    if not all(len(pair) == 2 for pair in pairs):
        raise errors.UserError(
            f"{merges_file} has a line that is not two tokens; expected "
            "merges.txt"
        )
    return (
        _byte_tokens() + ["".join(pair) for pair in pairs] + ["<|endoftext|>"]
    )


def _byte_tokens():
    """The 256 tokens of one byte: first those that print, then the others."""
    printable = itertools.chain(
        range(0x21, 0x7F), range(0xA1, 0xAD), range(0xAE, 0x100)
    )
    return [
        chr(code)
        for code in itertools.chain(printable, range(0x100, 0x100 + 68))
    ]


def row_order(symbols, tokens, ids, vocab_file):
    """Where the row of each id of a vocabulary stands in fairseq's order.

    Rows of padding words that the vocabulary lacks take the ids that it leaves
    free.

    Args:
      symbols: those of dict.txt.
      tokens: their texts, or None.
      ids: {token: id} of the vocabulary.
      vocab_file: its name, for messages.

    Returns:
      int64 [V].

    Raises:
      errors.UserError: the two do not hold the same tokens.
    """
    names = tokens if tokens is not None else symbols
    if tokens is None and not all(symbol in ids for symbol in symbols):
        _check_byte_rows(symbols, ids, vocab_file)
        return np.arange(len(symbols))
    extra = set(ids).difference(names)
    absent = [row for row, name in enumerate(names) if name not in ids]
    lacking = [names[row] for row in absent if not _PADDING.match(names[row])]
    if extra or lacking:
        raise errors.UserError(
            "%s and dict.txt do not hold the same tokens: %s; leave "
            "--vocab_file out and a vocab.json in the model's own order is "
            "written"
            % (
                vocab_file,
                "; ".join(
                    f"{len(words)} are only in {place}, such as "
                    f"{lazy_tensors.quoted(min(words))}"
                    for words, place in (
                        (extra, "vocab.json"),
                        (lacking, "dict.txt"),
                    )
                    if words
                ),
            )
        )
    order = np.full(len(symbols), -1, np.int64)
    for row, name in enumerate(names):
        if name in ids:
            order[ids[name]] = row
    order[order < 0] = absent
    return order


def _check_byte_rows(symbols, ids, vocab_file):
    """Tells by the tokens of one byte that both orders are the same.

    What a number from 256 on means is said by the merges; the first 256 are
    the same in every vocabulary of GPT-2's kind.
    """
    numbers = {
        str(number): token for number, token in enumerate(_byte_tokens())
    }
    rows = {
        numbers.get(symbol, symbol): row
        for row, symbol in enumerate(symbols)
        if symbol in numbers or symbol in SPECIAL_TOKENS or symbol == MASK_TOKEN
    }
    if len(ids) != len(symbols) or any(
        ids.get(token) != row for token, row in rows.items()
    ):
        raise errors.UserError(
            f"dict.txt and {vocab_file} hold tokens in different orders, and "
            "what the numbers in dict.txt mean is not known; give "
            "--merges_file or put GPT-2's encoder.json beside model.pt"
        )


def _options(checkpoint):
    """The settings of the training: `args` of old, `cfg.model` of new."""
    options = {}
    for part in (
        torch_file.attributes(checkpoint.get("cfg")).get("model"),
        checkpoint.get("args"),
    ):
        options.update(torch_file.attributes(part))
    return options


def _config(path, checkpoint, tensors, config_file):
    """config.json's keys: sizes from the settings, else from the weights."""
    options = _options(checkpoint)
    _check_activations(path, options, tensors)
    known = files.read_json(config_file) if config_file else {}

    def setting(name, key, default=None):
        value = options.get(name, known.get(key, default))
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise errors.UserError(
                f'{path} does not say {name} in its "args" or "cfg"; put a '
                f"config.json with {key} beside it"
            )
        return value

    def size(name, row):
        """A dimension of a weight; 0 where there is no such weight."""
        tensor = tensors.get(name)
        return tensor.shape[row] if tensor and len(tensor.shape) > row else 0

    layers = {
        name.split(".")[3]
        for name in tensors
        if name.startswith("roberta.encoder.layer.")
    }
    positions = size("roberta.embeddings.position_embeddings.weight", 0)
    if isinstance(options.get("max_positions"), int):
        # Positions start behind the id of <pad>, which is 1.
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
            "encoder_embed_dim",
            "hidden_size",
            size("roberta.embeddings.word_embeddings.weight", 1),
        ),
        "initializer_range": 0.02,
        "intermediate_size": setting(
            "encoder_ffn_embed_dim",
            "intermediate_size",
            size("roberta.encoder.layer.0.intermediate.dense.weight", 0),
        ),
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": positions,
        "model_type": "roberta",
        "num_attention_heads": setting(
            "encoder_attention_heads", "num_attention_heads"
        ),
        "num_hidden_layers": setting(
            "encoder_layers", "num_hidden_layers", len(layers)
        ),
        "pad_token_id": 1,
        "type_vocab_size": 1,
        "vocab_size": size("roberta.embeddings.word_embeddings.weight", 0),
    }


def _check_activations(path, options, tensors):
    """Refuses a model that Hugging Face's RoBERTa does not compute."""
    name = options.get("activation_fn", "gelu")
    if name != "gelu":
        raise errors.UserError(
            f"{path} has the activation {lazy_tensors.quoted(str(name))}; "
            "expected gelu"
        )
    pooler = options.get("pooler_activation_fn", "tanh")
    if "classifier.dense.weight" in tensors and pooler != "tanh":
        raise errors.UserError(
            f"{path} has a classification head whose activation is not tanh, "
            "as Hugging Face's is"
        )
