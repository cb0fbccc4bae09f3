# SPDX-License-Identifier: Apache-2.0
"""The model config: Hugging Face's config.json."""

import dataclasses
import typing

from absl import logging

from common import errors, files

# More would exhaust the memory with lists of variable names.
_MAX_LAYERS = 1000

_REQUIRED_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)

# Keys of config.json with one valid value: any other would be a model that
# is not implemented.
_FIXED_KEYS = {
    "model_type": "roberta",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "chunk_size_feed_forward": 0,
}

# Keys without an effect on the model.
_IGNORED_KEYS = frozenset(
    (
        "architectures",
        "bos_token_id",
        "eos_token_id",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "id2label",
        "label2id",
        "problem_type",
        "finetuning_task",
        "gradient_checkpointing",
        "_name_or_path",
        "output_past",
        "num_labels",
        "language",
        "name",
    )
)
GOOGLE_BERT = (
    "this is Google's BERT, whatever its name says: positions, special tokens "
    "and vocabulary differ from RoBERTa's; use a RoBERTa model"
)
# Without an effect on a RoBERTa; with two token types they show Google's BERT.
_BERT_KEYS = frozenset(
    (
        "directionality",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
    )
)
# An embedding table may have fewer rows than this beyond the vocabulary.
_MAX_PADDING = 128


def has_rows_for(rows: int, entries: int) -> bool:
    """Whether an embedding table is that of a vocabulary.

    It has a row for each entry, or is padded to a multiple of 8, 64 or 128.

    Args:
      rows: vocab_size of the config.
      entries: of the vocabulary.
    """
    return rows == entries or (
        rows % 8 == 0 and 0 < rows - entries < _MAX_PADDING
    )


@dataclasses.dataclass(frozen=True)
class RobertaConfig:
    """Sizes and rates of a model; the fields are config.json's keys."""

    vocab_size: int
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: typing.Optional[float] = None
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    pad_token_id: int = 1

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None or field.default is not None:
                _check_number(field.name, value, field.type is int)
        if self.hidden_size % self.num_attention_heads:
            raise errors.UserError(
                f"hidden_size is {self.hidden_size}, which is not a multiple "
                f"of num_attention_heads {self.num_attention_heads}; change "
                "one of them"
            )
        if self.pad_token_id >= self.vocab_size:
            raise errors.UserError(
                f"pad_token_id is {self.pad_token_id}, but vocab_size is "
                f"{self.vocab_size}; expected an id below vocab_size"
            )
        if self.max_sequence_length < 3:
            raise errors.UserError(
                f"max_position_embeddings is {self.max_position_embeddings}; "
                f"expected at least pad_token_id + 4 = {self.pad_token_id + 4} "
                "(512 tokens need 514)"
            )

    @property
    def max_sequence_length(self) -> int:
        """Tokens per sequence: positions start at pad_token_id + 1."""
        return self.max_position_embeddings - self.pad_token_id - 1

    @classmethod
    def from_dict(cls, values: typing.Dict[str, typing.Any]) -> "RobertaConfig":
        """Makes a config from the keys of a config.json.

        Raises:
          errors.UserError: a key is missing, has a wrong type, or requests a
            model that is not implemented.
        """
        missing = [key for key in _REQUIRED_KEYS if key not in values]
        if missing:
            raise errors.UserError(
                f"the model config lacks {', '.join(missing)}; expected a "
                "RoBERTa config.json as Hugging Face writes it"
            )
        for key, implemented in _FIXED_KEYS.items():
            if values.get(key, implemented) != implemented:
                raise errors.UserError(
                    f"the model config has {key} {values[key]!r}; only "
                    f"{implemented!r} is implemented"
                )
        signs = sorted(_BERT_KEYS & values.keys())
        if values.get("type_vocab_size") == 2 and signs:
            raise errors.UserError(
                f"the model config has type_vocab_size 2 and {signs[0]}: "
                f"{GOOGLE_BERT}"
            )
        if "layer_norm_eps" not in values:
            logging.warning(
                "the model config has no layer_norm_eps: using %g, RoBERTa's; "
                "set it to the value that the model was trained with",
                cls.layer_norm_eps,
            )
        return cls(
            **{key: values[key] for key in _field_names(cls) if key in values}
        )

    @classmethod
    def from_json_file(cls, path: str) -> "RobertaConfig":
        """Reads Hugging Face's config.json; logs the keys it does not know.

        Raises:
          errors.UserError: names the file and the problem.
        """
        if not path:
            raise errors.UserError(
                "no model config; pass --init_checkpoint, such as "
                "hf:roberta-base, or a RoBERTa config.json with "
                "--bert_config_file"
            )
        files.check_regular(path)
        values = files.read_json(path, "a model's config.json")
        try:
            config = cls.from_dict(values)
        except errors.UserError as error:
            raise errors.UserError(f"{path}: {error}") from error
        unknown = set(values) - set(_field_names(cls)) - set(_FIXED_KEYS)
        unknown -= _IGNORED_KEYS | _BERT_KEYS
        if unknown:
            logging.warning(
                "%s: ignoring the unknown keys %s",
                path,
                ", ".join(sorted(unknown)),
            )
        return config

    def to_dict(self) -> typing.Dict[str, typing.Any]:
        """The config as Hugging Face's transformers reads it."""
        values = {
            "model_type": "roberta",
            "hidden_act": "gelu",
            "position_embedding_type": "absolute",
            **dataclasses.asdict(self),
        }
        if values["classifier_dropout"] is None:
            del values["classifier_dropout"]
        return values


def _field_names(config_class):
    return [field.name for field in dataclasses.fields(config_class)]


def _check_number(name, value, is_integer):
    kinds = int if is_integer else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        kind = "a whole number" if is_integer else "a number"
        raise errors.UserError(f"{name} is {value!r}; expected {kind}")
    if "dropout" in name:
        is_valid, valid = 0 <= value < 1, "at least 0 and below 1"
    elif name == "pad_token_id":
        is_valid, valid = value >= 0, "at least 0"
    elif name == "num_hidden_layers":
        is_valid = 0 < value <= _MAX_LAYERS
        valid = f"1 to {_MAX_LAYERS}"
    else:
        is_valid, valid = 0 < value < 2**31, "above 0 and below 2**31"
    if not is_valid:
        raise errors.UserError(f"{name} is {value!r}; expected {valid}")
