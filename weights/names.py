# SPDX-License-Identifier: Apache-2.0
"""Which weight of RoBERTa has which name and shape, here and there.

Hugging Face names a weight `roberta.encoder.layer.0.output.dense.weight` and
stores it [out, in]; a TensorFlow checkpoint of BERT's family names it
`bert/encoder/layer_0/output/dense/kernel` and stores it [in, out]. One list
holds both, so that neither direction can know a weight the other does not.
"""

import typing

BASE = "encoder"

# Buffers of Hugging Face's older versions, which hold no weight.
BUFFERS = (
    "roberta.embeddings.position_ids",
    "roberta.embeddings.token_type_ids",
)
# Copies that Hugging Face's .bin files hold: name -> what it is a copy of.
TIED = {
    "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}

# What training adds to a TensorFlow checkpoint.
_TRAINING_STATE = frozenset(
    (
        "global_step",
        "loss_scale",
        "good_steps",
        "bad_steps",
        "batches_seen",
        "beta1_power",
        "beta2_power",
    )
)
_SLOTS = (
    "/adam_m",
    "/adam_v",
    "/Adam",
    "/Adam_1",
    "/LAMBOptimizer",
    "/LAMBOptimizer_1",
)
# BERT's next-sentence head: RoBERTa is not trained with it.
_NEXT_SENTENCE = (
    "cls/seq_relationship/output_weights",
    "cls/seq_relationship/output_bias",
)


class Variable(typing.NamedTuple):
    """One weight."""

    hf: str
    tf: str
    shape: typing.Tuple[typing.Optional[int], ...]  # Hugging Face's; None: free
    is_kernel: bool  # stored transposed in TensorFlow

    @property
    def tf_shape(self):
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


def _embeddings(config):
    hf, tf = "roberta.embeddings.", "bert/embeddings/"
    width = config.hidden_size
    return (
        _table(
            hf + "word_embeddings.weight",
            tf + "word_embeddings",
            config.vocab_size,
            width,
        )
        + _table(
            hf + "position_embeddings.weight",
            tf + "position_embeddings",
            config.max_position_embeddings,
            width,
        )
        + _table(
            hf + "token_type_embeddings.weight",
            tf + "token_type_embeddings",
            config.type_vocab_size,
            width,
        )
        + _norm(hf + "LayerNorm", tf + "LayerNorm", width)
    )


def _layer(config, number):
    hf = f"roberta.encoder.layer.{number}."
    tf = f"bert/encoder/layer_{number}/"
    width, inner = config.hidden_size, config.intermediate_size
    variables = []
    for part in ("query", "key", "value"):
        variables += _dense(
            hf + "attention.self." + part,
            tf + "attention/self/" + part,
            width,
            width,
        )
    return (
        variables
        + _dense(
            hf + "attention.output.dense",
            tf + "attention/output/dense",
            width,
            width,
        )
        + _norm(
            hf + "attention.output.LayerNorm",
            tf + "attention/output/LayerNorm",
            width,
        )
        + _dense(
            hf + "intermediate.dense", tf + "intermediate/dense", width, inner
        )
        + _dense(hf + "output.dense", tf + "output/dense", inner, width)
        + _norm(hf + "output.LayerNorm", tf + "output/LayerNorm", width)
    )


def _encoder(config):
    variables = _embeddings(config)
    for number in range(config.num_hidden_layers):
        variables += _layer(config, number)
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
    # No class of Hugging Face has this head; it keeps its weights all the same.
    return _dense(
        "answerable", "cls/squad/answerable", config.hidden_size, None
    )


def _classification(config):
    width, tf = config.hidden_size, "cls/classification/"
    return _dense("classifier.dense", tf + "dense", width, width) + _dense(
        "classifier.out_proj", tf + "out_proj", width, None
    )


def _multiple_choice(config):
    # What Hugging Face calls the pooler is the first layer of this head.
    width, tf = config.hidden_size, "cls/multiple_choice/"
    return _dense("roberta.pooler.dense", tf + "dense", width, width) + _dense(
        "classifier", tf + "out_proj", width, 1
    )


def _tagging(config):
    return _dense("classifier", "cls/tagging", config.hidden_size, None)


class Part(typing.NamedTuple):
    """Weights that are there together or not at all."""

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


def parts_in_hf(names, config, architectures):
    """The parts that weights with Hugging Face's names belong to.

    A `classifier` layer is a tagging head, or with a pooler a multiple-choice
    head; where `architectures` of config.json does not say which, a pooler and
    a single output mean the latter.

    Args:
      names: {name: weights.Tensor}.
      config: RobertaConfig.
      architectures: the list in config.json, [] if there is none.
    """
    found = {BASE}
    for part, (variables, architecture, _) in PARTS.items():
        if part in ("multiple_choice", "tagging"):
            continue
        if architecture in architectures or any(
            variable.hf in names for variable in variables(config)
        ):
            found.add(part)
    head = _classifier_kind(names, "pooler" in found, architectures)
    if head:
        found.add(head)
    if head == "multiple_choice":
        found.discard("pooler")
    return found


def _classifier_kind(names, has_pooler, architectures):
    for part in ("multiple_choice", "tagging"):
        if PARTS[part].architecture in architectures:
            return part
    kernel = names.get("classifier.weight")
    if kernel is None and "classifier.bias" not in names:
        return None
    single = kernel is not None and kernel.shape[:1] == (1,)
    return "multiple_choice" if has_pooler and single else "tagging"


def parts_in_tf(names, config):
    """The parts that variables of a TensorFlow checkpoint belong to."""
    return {BASE} | {
        part
        for part, (variables, _, _) in PARTS.items()
        if any(variable.tf in names for variable in variables(config))
    }


def variables(parts, config):
    """The Variables of some parts, in a fixed order."""
    return [
        variable
        for part in reversed(list(PARTS))
        if part in parts
        for variable in PARTS[part].variables(config)
    ]


def is_bare(parts):
    """Whether Hugging Face saves the names without their first word."""
    return set(parts) <= {BASE, "pooler"}


def architecture(parts, architectures):
    """Hugging Face's class for a model: the one named if its head is there."""
    fitting = [
        PARTS[part].architecture
        for part in PARTS
        if part in parts and PARTS[part].architecture
    ]
    for name in architectures:
        if name in fitting or (name == "RobertaModel" and not fitting):
            return name
    return fitting[0] if fitting else "RobertaModel"


def training_state(name, known):
    """Why a variable of a TensorFlow checkpoint is no weight, None if it is.

    Args:
      name: its name.
      known: names of the model's variables.
    """
    if name in _TRAINING_STATE:
        return "state of the training"
    for slot in _SLOTS:
        if name.endswith(slot) and (
            name[: -len(slot)] in known or name[: -len(slot)] in _NEXT_SENTENCE
        ):
            return "slot of the optimizer"
    if name in _NEXT_SENTENCE:
        return "BERT's next-sentence head, which RoBERTa does not have"
    return None
