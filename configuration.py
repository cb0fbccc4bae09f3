# SPDX-License-Identifier: Apache-2.0
"""The model config: Hugging Face's config.json."""

import dataclasses
import typing

from common import errors, files

# Lists of all variables are made of a config before it is compared with data.
_MAX_LAYERS = 1000


_REQUIRED_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)

# Keys of config.json that may have one value only: another one would be a
# model this file does not implement.
_FIXED_KEYS = {
    "model_type": "roberta",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "chunk_size_feed_forward": 0,
}


# Keys that change nothing here.
_PASSED_OVER_KEYS = frozenset(
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
        "directionality",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
        "language",
        "name",
    )
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
    # Keys of the file that were neither read nor known to change nothing.
    unknown_keys: typing.Tuple[str, ...] = ()

    def __post_init__(self):
        for field in dataclasses.fields(self):
            self._check_number(field, getattr(self, field.name))
        if self.hidden_size % self.num_attention_heads:
            raise errors.UserError(
                f"hidden_size is {self.hidden_size}, which is no multiple of "
                f"num_attention_heads {self.num_attention_heads}; change one "
                "of them"
            )
        if self.pad_token_id >= self.vocab_size:
            raise errors.UserError(
                f"pad_token_id is {self.pad_token_id}, but vocab_size is "
                f"{self.vocab_size}; the id must lie below it"
            )
        if self.max_sequence_length < 3:
            raise errors.UserError(
                f"max_position_embeddings is {self.max_position_embeddings}: "
                "it must be at least pad_token_id + 4 = "
                f"{self.pad_token_id + 4} (512 tokens need 514)"
            )

    @staticmethod
    def _check_number(field, value):
        if field.name == "unknown_keys" or (
            value is None and field.name == "classifier_dropout"
        ):
            return
        whole = field.type is int
        if isinstance(value, bool) or not isinstance(
            value, int if whole else (int, float)
        ):
            raise errors.UserError(
                f"{field.name} is {value!r}; expected a "
                f"{('whole ' if whole else '')}number"
            )
        if "dropout" in field.name:
            valid, wanted = 0 <= value < 1, "at least 0 and below 1"
        elif field.name == "pad_token_id":
            valid, wanted = value >= 0, "at least 0"
        elif field.name == "num_hidden_layers":
            valid = 0 < value <= _MAX_LAYERS
            wanted = f"from 1 to {_MAX_LAYERS}"
        else:
            valid = 0 < value < 2**31
            wanted = "above 0 and below 2**31"
        if not valid:
            raise errors.UserError(
                f"{field.name} is {value!r}; it must be {wanted}"
            )

    @property
    def max_sequence_length(self):
        """Tokens a sequence may have: positions start at pad_token_id + 1."""
        return self.max_position_embeddings - self.pad_token_id - 1

    @classmethod
    def from_dict(cls, values):
        """Reads the keys of a config.json.

        Raises:
          errors.UserError: a key is missing, has a wrong type, or asks for a
            model that is not implemented.
        """
        if not isinstance(values, dict):
            raise errors.UserError(
                f"the model config is a {type(values).__name__}; expected a "
                "JSON object"
            )
        missing = [key for key in _REQUIRED_KEYS if key not in values]
        if missing:
            raise errors.UserError(
                f"the model config lacks {', '.join(missing)}; expected a "
                "RoBERTa config.json as Hugging Face writes it"
            )
        for key, wanted in _FIXED_KEYS.items():
            if key in values and values[key] != wanted:
                raise errors.UserError(
                    f"the model config has {key} {values[key]!r}; only "
                    f"{wanted!r} is implemented"
                )
        names = {field.name for field in dataclasses.fields(cls)}
        names.discard("unknown_keys")
        known = names | set(_FIXED_KEYS) | _PASSED_OVER_KEYS
        return cls(
            unknown_keys=tuple(sorted(set(values) - known)),
            **{key: values[key] for key in names if key in values},
        )

    @classmethod
    def from_json_file(cls, path):
        """Reads Hugging Face's config.json.

        Raises:
          errors.UserError: names the file and what is wrong in it.
        """
        if not path:
            raise errors.UserError(
                "no model config is given; name a RoBERTa "
                "config.json with --bert_config_file"
            )
        values = files.read_json(path, "a model's config.json")
        try:
            return cls.from_dict(values)
        except errors.UserError as error:
            raise errors.UserError(f"{path}: {error}") from error

    def to_dict(self):
        """The config as Hugging Face's transformers reads it."""
        values = {
            "model_type": "roberta",
            "hidden_act": "gelu",
            "position_embedding_type": "absolute",
        }
        values.update(dataclasses.asdict(self))
        del values["unknown_keys"]
        if values["classifier_dropout"] is None:
            del values["classifier_dropout"]
        return values
