# SPDX-License-Identifier: Apache-2.0
"""The TensorFlow graphs of a trained model's heads, and their engine.

`build` makes the graph of a head without its training, `restored` a session
with its weights; an Engine keeps one to answer predictor.Predictor.
"""

import typing

import tensorflow.compat.v1 as tf

import configuration
import environment
import modeling
import optimization
from inference import trained_model
from kernels import Kernels

# Added to logits at padding, so that no answer begins or ends there.
NO_ANSWER = -1e9


def build(
    model: trained_model.TrainedModel,
    head: str,
    input_ids: tf.Tensor,
    kernels: Kernels = Kernels(),
) -> typing.Dict[str, tf.Tensor]:
    """The graph of a head, as in training but without dropout.

    Args:
      model: trained_model.TrainedModel, which has the head.
      head: a key of HEADS.
      input_ids: int32 [B, S]; for multiple_choice [B, C, S], C options.
      kernels: Kernels.

    Returns:
      {name: float32 tensor}: "sequence_output" [B, S, H] of encoder, "logits"
      [B, S, V] of mlm, [B, labels] of classification, [B, C] of
      multiple_choice, [B, S, labels] of tagging; "start_logits" and
      "end_logits" [B, S] of squad, very low at padding, and
      "answerable_logits" [B] where the checkpoint has that classifier.
    """
    config, rows = model.config, input_ids
    if head == "multiple_choice":
        length = input_ids.shape.as_list()[2]
        rows = tf.reshape(input_ids, [-1, length or tf.shape(input_ids)[2]])
        rows.set_shape([None, length])
    encoder = modeling.RobertaModel(config, False, rows, kernels=kernels)
    hidden = encoder.get_sequence_output()
    if head == "encoder":
        return {"sequence_output": tf.cast(hidden, tf.float32)}
    if head == "mlm":
        return {"logits": _all_positions(config, encoder, hidden, kernels)}
    if head == "squad":
        return span_logits(
            config, hidden, input_ids, kernels, "answerable" in model.parts
        )
    if head == "multiple_choice":
        return {
            "logits": modeling.multiple_choice_logits(
                config, hidden, tf.shape(input_ids)[1], kernels
            )
        }
    logits = {
        "classification": modeling.classification_logits,
        "tagging": modeling.tagging_logits,
    }[head]
    return {"logits": logits(config, hidden, model.num_labels(head), kernels)}


def best_tokens(
    model: trained_model.TrainedModel,
    input_ids: tf.Tensor,
    positions: tf.Tensor,
    count: typing.Union[int, tf.Tensor],
    kernels: Kernels = Kernels(),
) -> typing.Dict[str, tf.Tensor]:
    """The graph of the most probable tokens at some positions.

    Rows of a padded embedding table are not tokens.

    Args:
      model: trained_model.TrainedModel, which has the LM head.
      input_ids: int32 [B, S].
      positions: int32 [N], rows of the flattened [B * S].
      count: K, int or int32 scalar.
      kernels: Kernels.

    Returns:
      {"ids": int32 [N, K], "log_probabilities": float32 [N, K]}, falling.
    """
    encoder = modeling.RobertaModel(
        model.config, False, input_ids, kernels=kernels
    )
    logits = modeling.masked_lm_logits(
        model.config,
        kernels.gather(encoder.get_rows(), positions),
        encoder.get_embedding_table(),
        kernels,
    )
    logits = logits[:, : model.vocab_size]
    values, ids = tf.nn.top_k(tf.nn.log_softmax(logits), count)
    return {"ids": ids, "log_probabilities": values}


def _all_positions(config, encoder, hidden, kernels):
    """LM logits of every position, [B, S, V]."""
    logits = modeling.masked_lm_logits(
        config, encoder.get_rows(), encoder.get_embedding_table(), kernels
    )
    return modeling.by_sequence(logits, hidden)


def span_logits(
    config: configuration.RobertaConfig,
    hidden: tf.Tensor,
    input_ids: tf.Tensor,
    kernels: Kernels,
    has_answerable: bool,
    first: typing.Optional[tf.Tensor] = None,
) -> typing.Dict[str, tf.Tensor]:
    """The graph of SQuAD's heads; "answerable_logits" if asked for.

    `first` [N, 1, H] has the `<s>` of each sequence; None takes hidden's.
    """
    start, end = modeling.squad_logits(config, hidden, kernels)
    padding = tf.equal(input_ids, config.pad_token_id)
    # The loss is then independent of a batch's padding.
    lowest = tf.cast(padding, tf.float32) * NO_ANSWER
    answerable = {}
    if has_answerable:
        answerable["answerable_logits"] = modeling.answerable_logits(
            config, hidden if first is None else first, kernels
        )
    return dict(
        start_logits=start + lowest, end_logits=end + lowest, **answerable
    )


def restored(
    model: trained_model.TrainedModel,
    graph: tf.Graph,
    session_config: typing.Optional[tf.ConfigProto] = None,
) -> tf.Session:
    """A session of a graph whose variables come from the checkpoint.

    Args:
      model: trained_model.TrainedModel.
      graph: tf.Graph.
      session_config: tf.ConfigProto, or None.
    """
    session = tf.Session(graph=graph, config=session_config)
    with graph.as_default():
        cast = tf.local_variables_initializer()
        saver = tf.train.Saver(
            {
                optimization.variable_name(variable): variable
                for variable in tf.global_variables()
            }
        )
        saver.restore(session, model.checkpoint)
    session.run(cast)
    return session


def cast_variable(getter, name, shape=None, dtype=None, *args, **kwargs):
    """Variable getter: device.float32_variable for weights that do not change.

    `restored` casts them once, not at each call.
    """
    stored = getter(name, shape, tf.float32, *args, **kwargs)
    if dtype is None or dtype == tf.float32:
        return stored
    return tf.Variable(
        tf.cast(stored, dtype),
        trainable=False,
        collections=[tf.GraphKeys.LOCAL_VARIABLES],
        use_resource=True,
    ).value()


# --- The engine of predictor.Predictor ---------------------------------------


class Engine:
    """A graph in a session."""

    def __init__(self, model, task, head, settings):
        """See predictor.Predictor; head is a key of trained_model.HEADS."""
        device = environment.create(
            environment.DeviceConfig(
                accelerator=_accelerator(settings.accelerator),
                manual_fp16=settings.manual_fp16,
                use_bf16=settings.use_bf16,
            )
        )
        kernels = device.kernels._replace(variable_getter=cast_variable)
        self.name = f"TensorFlow {tf.__version__}"
        make = {"fill-mask": _build_fill_mask, "embed": _build_embed}.get(
            task, _build_head
        )
        graph = tf.Graph()
        with graph.as_default():
            self._inputs = {
                "input_ids": tf.placeholder(tf.int32, [None, None], "input_ids")
            }
            self._outputs = make(model, head, settings, self._inputs, kernels)
        self._session = restored(model, graph, device.session_config())

    def call(self, input_ids, **inputs):
        """{name: array} of one batch; MemoryError where it does not fit."""
        inputs["input_ids"] = input_ids
        try:
            return self._session.run(
                self._outputs,
                {self._inputs[name]: value for name, value in inputs.items()},
            )
        except tf.errors.ResourceExhaustedError as error:
            raise MemoryError(str(error)) from error


def _accelerator(name):
    """cpu or gpu: an NPU serves offline models, see docs/export.md."""
    if name != "auto":
        return name
    gpus = tf.config.experimental.list_physical_devices("GPU")
    return "gpu" if gpus else "cpu"


def _build_head(model, head, _settings, inputs, kernels):
    return build(model, head, inputs["input_ids"], kernels)


def _build_fill_mask(model, _head, _settings, inputs, kernels):
    """The best tokens of the masked positions alone, [masks, top_k]."""
    inputs["positions"] = tf.placeholder(tf.int32, [None], "positions")
    inputs["top_k"] = tf.placeholder(tf.int32, [], "top_k")
    return best_tokens(
        model,
        inputs["input_ids"],
        inputs["positions"],
        inputs["top_k"],
        kernels,
    )


def _build_embed(model, head, settings, inputs, kernels):
    hidden = build(model, head, inputs["input_ids"], kernels)["sequence_output"]
    if settings.pooling == "first":
        hidden = hidden[:, 0]
    elif settings.pooling == "mean":
        tokens = tf.cast(
            tf.not_equal(inputs["input_ids"], model.config.pad_token_id),
            tf.float32,
        )
        hidden = tf.reduce_sum(
            hidden * tokens[:, :, tf.newaxis], axis=1
        ) / tf.reduce_sum(tokens, axis=1, keepdims=True)
    return {"vectors": hidden}
