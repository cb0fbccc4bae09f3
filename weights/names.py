# SPDX-License-Identifier: Apache-2.0
"""Names and shapes of RoBERTa's weights in Hugging Face and TensorFlow.

Hugging Face names a weight `roberta.encoder.layer.0.output.dense.weight` and
stores it [out, in]; a TensorFlow checkpoint of BERT's family names it
`bert/encoder/layer_0/output/dense/kernel` and stores it [in, out]. One list
contains both, so that both directions know the same weights.
"""

import os
import re
import typing

import configuration
from common import errors

BASE = "encoder"

# Buffers of Hugging Face's older versions, which are not weights.
BUFFERS = (
    "roberta.embeddings.position_ids",
    "roberta.embeddings.token_type_ids",
)
# Copies in Hugging Face's .bin files: name -> the name of the original.
WORDS = "roberta.embeddings.word_embeddings.weight"
TIED = {"lm_head.decoder.weight": WORDS, "lm_head.decoder.bias": "lm_head.bias"}

# The number of a layer in a variable's name.
_LAYER = re.compile(r"^bert/encoder/layer_(\d+)/", re.MULTILINE)
# What training adds to a TensorFlow checkpoint.
_TRAINING_STATE = frozenset(
    (
        "global_step",
        "loss_scale",
        "good_steps",
        "bad_steps",
        "batches_seen",
        "records_seen",
        "beta1_power",
        "beta2_power",
    )
)
_SLOTS = frozenset(
    ("adam_m", "adam_v", "Adam", "Adam_1", "LAMBOptimizer", "LAMBOptimizer_1")
)
# Why a slot is not a weight.
SLOT = "slot of the optimizer"
# BERT's next-sentence head: RoBERTa is not trained with it.
_NEXT_SENTENCE = (
    "cls/seq_relationship/output_weights",
    "cls/seq_relationship/output_bias",
)


def check_is_roberta(
    path: str, names: typing.Iterable[str], token_types: int
) -> None:
    """Rejects Google's BERT, of which many Chinese models are called RoBERTa.

    It has two token types, and a next-sentence head or a vocab.txt.

    Args:
      path: of the weights.
      names: of the weights.
      token_types: type_vocab_size of the config.

    Raises:
      errors.UserError: names what shows it.
    """
    vocab, word_pieces = (
        os.path.isfile(os.path.join(os.path.dirname(path), name))
        for name in ("vocab.json", "vocab.txt")
    )
    signs = [name for name in names if "seq_relationship" in name]
    signs += ["vocab.txt beside it"] * (word_pieces and not vocab)
    if token_types == 2 and signs:
        raise errors.UserError(
            f"{path} has two token types and {signs[0]}: "
            f"{configuration.GOOGLE_BERT}"
        )


def check_layers(
    path: str,
    names: typing.Iterable[str],
    config: configuration.RobertaConfig,
    config_file: str,
) -> None:
    """Rejects a config with fewer or more layers than a checkpoint.

    A model with the lower layers alone would be another one.

    Args:
      path: of the checkpoint.
      names: of its variables; without any encoder layer they fit all configs.
      config: of the model.
      config_file: its file, for the message.

    Raises:
      errors.UserError: names both numbers.
    """
    layers = len(set(_LAYER.findall("\n".join(names))))
    if layers not in (0, config.num_hidden_layers):
        raise errors.UserError(
            f"{path} has {layers} encoder layers, but {config_file} has "
            f"num_hidden_layers {config.num_hidden_layers}; use the "
            "config.json of this checkpoint"
        )


class Variable(typing.NamedTuple):
    """One weight."""

    hf: str
    tf: str
    shape: typing.Tuple[typing.Optional[int], ...]  # Hugging Face's; None: free
    is_kernel: bool  # stored transposed in TensorFlow

    @property
    def tf_shape(self) -> typing.Tuple[typing.Optional[int], ...]:
        """TensorFlow's shape; None: free."""
        return self.shape[::-1] if self.is_kernel else self.shape


def _table(hf, tf, *shape):
    return [Variable(hf, tf, shape, False)]


def _dense(hf, tf, inputs, outputs):
    return [
        Variable(hf + ".weight", tf + "/kernel", (outputs, inputs), True),
        Variable(hf + ".bias", tf + "/bias", (outputs,), False),
    ]


def _norm(hf, tf, size):
    return [
        Variable(hf + ".weight", tf + "/gamma", (size,), False),
        Variable(hf + ".bias", tf + "/beta", (size,), False),
    ]


def _encoder(config):
    hf, tf, width = (
        "roberta.embeddings.",
        "bert/embeddings/",
        config.hidden_size,
    )
    variables = []
    for name, size in (
        ("word_embeddings", config.vocab_size),
        ("position_embeddings", config.max_position_embeddings),
        ("token_type_embeddings", config.type_vocab_size),
    ):
        variables += _table(f"{hf}{name}.weight", tf + name, size, width)
    variables += _norm(hf + "LayerNorm", tf + "LayerNorm", width)
    for number in range(config.num_hidden_layers):
        variables += _layer(config, number)
    return variables


def _layer(config, number):
    width, inner = config.hidden_size, config.intermediate_size

    def names(part):
        return (
            f"roberta.encoder.layer.{number}.{part}",
            f"bert/encoder/layer_{number}/{part.replace('.', '/')}",
        )

    variables = []
    for part, inputs, outputs in (
        ("attention.self.query", width, width),
        ("attention.self.key", width, width),
        ("attention.self.value", width, width),
        ("attention.output.dense", width, width),
        ("intermediate.dense", width, inner),
        ("output.dense", inner, width),
    ):
        variables += _dense(*names(part), inputs, outputs)
    for part in ("attention.output.LayerNorm", "output.LayerNorm"):
        variables += _norm(*names(part), width)
    return variables


def _pooler(config):
    width = config.hidden_size
    return _dense("roberta.pooler.dense", "bert/pooler/dense", width, width)


def _masked_lm(config):
    width, tf = config.hidden_size, "cls/predictions/transform/"
    return (
        _dense("lm_head.dense", tf + "dense", width, width)
        + _norm("lm_head.layer_norm", tf + "LayerNorm", width)
        + _table(
            "lm_head.bias", "cls/predictions/output_bias", config.vocab_size
        )
    )


def _question_answering(config):
    # [2, H] on both sides: BERT never transposed this one.
    return _table(
        "qa_outputs.weight", "cls/squad/output_weights", 2, config.hidden_size
    ) + _table("qa_outputs.bias", "cls/squad/output_bias", 2)


def _answerable(config):
    # No class of Hugging Face has this head, but its weights are kept.
    return _dense(
        "answerable", "cls/squad/answerable", config.hidden_size, None
    )


def _classification(config):
    width, tf = config.hidden_size, "cls/classification/"
    return _dense("classifier.dense", tf + "dense", width, width) + _dense(
        "classifier.out_proj", tf + "out_proj", width, None
    )


def _multiple_choice(config):
    # Hugging Face's pooler is the first layer of this head.
    width, tf = config.hidden_size, "cls/multiple_choice/"
    return _dense("roberta.pooler.dense", tf + "dense", width, width) + _dense(
        "classifier", tf + "out_proj", width, 1
    )


def _tagging(config):
    return _dense("classifier", "cls/tagging", config.hidden_size, None)


class Part(typing.NamedTuple):
    """Weights that a model has all of or none of."""

    variables: typing.Callable  # RobertaConfig -> [Variable]
    architecture: typing.Optional[str]  # Hugging Face's class for it
    has_labels: bool  # its free dimension is the number of labels


# In the order in which they decide what kind of model it is.
PARTS = {
    "question_answering": Part(
        _question_answering, "RobertaForQuestionAnswering", False
    ),
    "classification": Part(
        _classification, "RobertaForSequenceClassification", True
    ),
    "multiple_choice": Part(
        _multiple_choice, "RobertaForMultipleChoice", False
    ),
    "tagging": Part(_tagging, "RobertaForTokenClassification", True),
    "masked_lm": Part(_masked_lm, "RobertaForMaskedLM", False),
    "answerable": Part(_answerable, None, False),
    "pooler": Part(_pooler, None, False),
    BASE: Part(_encoder, None, False),
}


Names = typing.Container[str]
# The command that trains a head, by its part.
TRAINERS = {
    "question_answering": "run_squad.py",
    "classification": "run_classifier.py",
    "multiple_choice": "run_multiple_choice.py",
    "tagging": "run_tagger.py",
}


def parts_in_hf(
    names: typing.Mapping[str, typing.Any],
    config: typing.Any,
    architectures: typing.List[str],
) -> typing.Set[str]:
    """The parts of a model with Hugging Face's names.

    A `classifier` layer is a tagging head, or with a pooler a multiple-choice
    head; if `architectures` of config.json does not say which, a pooler and
    a single output mean the latter.

    Args:
      names: {name: lazy_tensors.Tensor}.
      config: RobertaConfig.
      architectures: the list in config.json, [] if there is none.
    """
    parts = {
        part
        for part, (variables, architecture, _) in PARTS.items()
        if part not in ("multiple_choice", "tagging")
        and (
            architecture in architectures
            or any(variable.hf in names for variable in variables(config))
        )
    }
    head = _classifier_kind(names, "pooler" in parts, architectures)
    if head == "multiple_choice":
        parts.discard("pooler")
    return parts | {BASE} | ({head} if head else set())


def _classifier_kind(names, has_pooler, architectures):
    for part in ("multiple_choice", "tagging"):
        if PARTS[part].architecture in architectures:
            return part
    kernel = names.get("classifier.weight")
    if kernel is None and "classifier.bias" not in names:
        return None
    single = kernel is not None and kernel.shape[:1] == (1,)
    return "multiple_choice" if has_pooler and single else "tagging"


def parts_in_tf(names: Names, config: typing.Any) -> typing.Set[str]:
    """The parts of a TensorFlow checkpoint with variables of these names."""
    return {BASE} | {
        part
        for part, (variables, _, _) in PARTS.items()
        if any(variable.tf in names for variable in variables(config))
    }


def variables(
    parts: typing.Container[str], config: typing.Any
) -> typing.List[Variable]:
    """The Variables of some parts, in a fixed order."""
    return [
        variable
        for part in reversed(list(PARTS))
        if part in parts
        for variable in PARTS[part].variables(config)
    ]


def check_fine_tuned(
    path: str, part: str, parts: typing.Collection[str]
) -> None:
    """Rejects a pre-trained model where a task's head is needed.

    Args:
      path: of the checkpoint, for the message.
      part: the head, a key of PARTS.
      parts: those of the checkpoint.

    Raises:
      errors.UserError: names the command that fine-tunes it.
    """
    if part in TRAINERS and not set(parts) & set(TRAINERS):
        raise errors.UserError(
            f"{path}: a pre-trained model without a {part} head; fine-tune it "
            f"first with {TRAINERS[part]} --do_train=True "
            f"--init_checkpoint={path}"
        )


def only_head(parts: typing.Iterable[str]) -> str:
    """The head among some parts, "" if there is none or several."""
    heads = [part for part in parts if PARTS[part].architecture]
    return heads[0] if len(heads) == 1 else ""


def is_bare(parts: typing.Iterable[str]) -> bool:
    """Whether Hugging Face saves the names without `roberta.`."""
    return set(parts) <= {BASE, "pooler"}


def architecture(
    parts: typing.Container[str], architectures: typing.List[str]
) -> str:
    """Hugging Face's class for a model: a named one if it has its head."""
    fitting = [
        kind for part, (_, kind, _) in PARTS.items() if part in parts and kind
    ]
    for name in architectures:
        if name in fitting or (name == "RobertaModel" and not fitting):
            return name
    return fitting[0] if fitting else "RobertaModel"


def training_state(name: str, known: Names) -> typing.Optional[str]:
    """Why a variable of a TensorFlow checkpoint is not a weight, else None.

    Args:
      name: its name.
      known: names of the model's variables.
    """
    if name in _TRAINING_STATE:
        return "state of the training"
    stem, _, slot = name.rpartition("/")
    if slot in _SLOTS and (stem in known or stem in _NEXT_SENTENCE):
        return SLOT
    if name in _NEXT_SENTENCE:
        return "BERT's next-sentence head, which RoBERTa does not have"
    return None
