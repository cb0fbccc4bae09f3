# SPDX-License-Identifier: Apache-2.0
"""RoBERTa's encoder and heads as a TensorFlow graph.

Axes, the same letters everywhere: B batch, S tokens of a sequence, H hidden
size, A heads, D head size (H = A * D), F feed-forward size, V vocabulary,
P output positions per sequence, N rows of a flattened tensor (B * S or B * P).

The module reads no flags and depends on no device or precision: `Kernels`
holds the operations that differ between devices. Variable names are BERT's, so
that checkpoints of that family load.

Source: Liu et al. 2019 (arXiv:1907.11692); Devlin et al. 2018; positions and
numerics of fairseq's and Hugging Face's RoBERTa.
"""

import math
import typing
import zlib

import tensorflow.compat.v1 as tf

from common import errors
from configuration import RobertaConfig
from kernels import Kernels, bias_add


class RobertaModel:
    """The encoder: from token ids to hidden states.

        model = RobertaModel(config, is_training=False, input_ids=input_ids)
        logits = masked_lm_logits(config, rows, model.get_embedding_table())

    Padding does not change the hidden states of tokens; values at padded
    positions are undefined.
    """

    def __init__(
        self,
        config: RobertaConfig,
        is_training: bool,
        input_ids: tf.Tensor,
        input_mask: typing.Optional[tf.Tensor] = None,
        *,
        sequence_starts: typing.Optional[tf.Tensor] = None,
        kernels: Kernels = Kernels(),
        dropout_seed: typing.Optional[tf.Tensor] = None,
        recompute_layers: bool = False,
        frozen_layers: int = 0,
        output_positions: typing.Optional[tf.Tensor] = None,
        scope: str = "bert",
    ):
        """Builds the graph of the encoder.

        Args:
          config: RobertaConfig.
          is_training: whether dropout is applied.
          input_ids: int [B, S].
          input_mask: int [B, S], 1 for a token, 0 for padding; None means
            input_ids != pad_token_id. Positions follow input_ids alone.
          sequence_starts: int32 [B, S], where a row has several sequences: the
            column of the first token of each token's sequence, -1 at padding.
            A token attends to those of its sequence; positions restart with
            each. Replaces input_mask.
          kernels: Kernels.
          dropout_seed: int32 [2]; required where is_training and a rate > 0.
          recompute_layers: whether the backward pass computes a layer's
            activations again instead of storing them: less memory, about a
            third more time.
          frozen_layers: embeddings and so many layers from below get no
            gradient; 0 trains all.
          output_positions: int32 [B, P], the positions at which the last
            layer is computed, from keys and values everywhere; None for all.
            `get_rows` then gives [B * P, H].
          scope: the outermost variable scope.

        Raises:
          errors.UserError: S exceeds the config's positions.
        """
        length = input_ids.shape.as_list()[1]
        if length is not None and length > config.max_sequence_length:
            raise errors.UserError(
                f"a sequence has {length} tokens, but max_position_embeddings "
                f"{config.max_position_embeddings} has positions for "
                f"{config.max_sequence_length}; use "
                f"{config.max_sequence_length} or less"
            )
        self._config = config
        self._kernels = kernels
        self._scope = scope
        self._input_ids = input_ids
        self._has_all_rows = output_positions is None
        seeds = _encoder_seeds(config, kernels, is_training, dropout_seed)
        layers = _Layers(config, kernels, seeds, tf.shape(input_ids))
        with tf.variable_scope(scope, custom_getter=kernels.variable_getter):
            with tf.variable_scope("embeddings"):
                hidden, self._embedding_table = layers.embed(
                    input_ids, sequence_starts
                )
            mask = _attention_mask(
                config, input_ids, input_mask, sequence_starts
            )
            with tf.variable_scope("encoder"):
                outputs = layers.encode(
                    hidden,
                    mask,
                    sequence_starts,
                    output_positions,
                    recompute_layers,
                    frozen_layers,
                )
                self._hidden = [hidden, *outputs]  # each [N, H]

    def _batched(self, rows):
        return by_sequence(rows, self._input_ids)

    def get_sequence_output(self) -> tf.Tensor:
        """The last layer's hidden states, [B, S, H], compute dtype."""
        if not self._has_all_rows:
            raise ValueError(
                "the last layer was computed at output_positions only; use "
                "get_rows()"
            )
        return self._batched(self._hidden[-1])

    def get_rows(self) -> tf.Tensor:
        """The last layer's hidden states, flattened: [N, H]."""
        return self._hidden[-1]

    def get_all_encoder_layers(self) -> typing.List[tf.Tensor]:
        """Each layer's hidden states, a list of [B, S, H]."""
        return [self._batched(rows) for rows in self._hidden[1:-1]] + [
            self.get_sequence_output()
        ]

    def get_embedding_output(self) -> tf.Tensor:
        """The embeddings after LayerNorm and dropout, [B, S, H]."""
        return self._batched(self._hidden[0])

    def get_embedding_table(self) -> tf.Tensor:
        """The word embeddings, [V, H] float32."""
        return self._embedding_table

    def get_pooled_output(self) -> tf.Tensor:
        """tanh of a dense layer over `<s>`, [B, H] of kernels.head_dtype.

        Creates the pooler's variables.
        """
        first = self.get_sequence_output()[:, 0]
        with tf.variable_scope(
            self._scope,
            reuse=tf.AUTO_REUSE,
            custom_getter=self._kernels.variable_getter,
        ), tf.variable_scope("pooler"):
            return tf.tanh(
                dense(
                    first,
                    self._config.hidden_size,
                    "dense",
                    initializer_range=self._config.initializer_range,
                    dtype=self._kernels.head_dtype,
                    kernels=self._kernels,
                )
            )


def by_sequence(rows: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
    """[N, C] -> [B, S, C], with B and S of tokens [B, S, ...]."""
    shape = tf.shape(tokens)
    width = rows.shape.as_list()[-1]
    batched = tf.reshape(rows, [shape[0], shape[1], width])
    batched.set_shape(tokens.shape.as_list()[:2] + [width])
    return batched


def _seeds(seed, count, kernels, first=0):
    """An iterator of a different seed for each dropout, from one int32 [2].

    One operation makes all of them, on the host, which starts the dropouts.

    Args:
      seed: int32 [2].
      count: how many are made.
      kernels: Kernels.
      first: number of seeds that others have made.
    """
    # An odd multiplier spreads the numbers over the 32 bits.
    numbers = [
        [((first + index) * 0x9E3779B1) & 0x7FFFFFFF, 0]
        for index in range(1, count + 1)
    ]
    with kernels.host():
        seeds = tf.bitwise.bitwise_xor(seed, tf.constant(numbers))
        return iter(tf.unstack(seeds))


def _encoder_seeds(config, kernels, is_training, seed):
    """One seed for the embeddings, three in a layer; None without dropout."""
    if not is_training or not (
        config.hidden_dropout_prob or config.attention_probs_dropout_prob
    ):
        return None
    if seed is None:
        raise ValueError("dropout in training needs dropout_seed")
    return _seeds(seed, 1 + 3 * config.num_hidden_layers, kernels)


class _Layers:
    """Builds embeddings and transformer layers from the same settings."""

    def __init__(self, config, kernels, seeds, shape):
        """
        Args:
          config: RobertaConfig.
          kernels: Kernels.
          seeds: from `_seeds`, None outside of training.
          shape: int32 [2], B and S.
        """
        self._config = config
        self._kernels = kernels
        self._seeds = seeds
        self._shape = shape

    def _drop(self, x, rate, seed):
        return self._kernels.dropout(x, rate, seed) if seed is not None else x

    def _seed(self, rate):
        return next(self._seeds) if self._seeds and rate > 0 else None

    def embed(self, input_ids, sequence_starts=None):
        """int [B, S] -> ([N, H] of the compute dtype, table [V, H])."""
        config, kernels = self._config, self._kernels

        def table(name, rows):
            return normal_variable(
                name, [rows, config.hidden_size], config.initializer_range
            )

        words = table("word_embeddings", config.vocab_size)
        positions = table("position_embeddings", config.max_position_embeddings)
        types = table("token_type_embeddings", config.type_vocab_size)
        token = tf.cast(tf.not_equal(input_ids, config.pad_token_id), tf.int32)
        if sequence_starts is None:
            places = tf.cumsum(token, axis=1)
        else:
            places = tf.range(1, self._shape[1] + 1) - sequence_starts
        position_ids = places * token + config.pad_token_id
        # RoBERTa has one segment: its embedding is the same row everywhere.
        rows, words = kernels.embed(words, tf.reshape(input_ids, [-1]))
        hidden = (
            rows
            + kernels.gather(positions, tf.reshape(position_ids, [-1]))
            + types[0]
        )  # [N, H]
        hidden = layer_norm(hidden, config.layer_norm_eps, kernels)
        rate = config.hidden_dropout_prob
        hidden = self._drop(hidden, rate, self._seed(rate))
        return tf.cast(hidden, kernels.compute_dtype), words

    def encode(self, hidden, mask, starts, output_positions, recompute, frozen):
        """Yields the output of each layer; arguments as for RobertaModel."""
        last = self._config.num_hidden_layers - 1
        for index in range(last + 1):
            positions = output_positions if index == last else None
            if starts is not None and positions is not None:
                mask = _block_diagonal_mask(starts, positions)
            with tf.variable_scope(f"layer_{index}"):
                hidden = self.transform(hidden, mask, positions, recompute)
            if index + 1 == frozen:
                hidden = tf.stop_gradient(hidden)
            yield hidden

    def transform(self, hidden, mask, positions, recompute):
        """One transformer layer.

        Args:
          hidden: [N, H].
          mask: float32 [B, 1, 1, S] or [B, 1, length, S], 0 or a large
            negative number.
          positions: int32 [B, P] of the output; None: everywhere.
          recompute: see RobertaModel.

        Returns:
          [N, H].
        """
        config = self._config
        attention_seed = self._seed(config.attention_probs_dropout_prob)
        output_seeds = [self._seed(config.hidden_dropout_prob) for _ in "12"]
        if positions is not None:
            starts = tf.range(self._shape[0])[:, tf.newaxis] * self._shape[1]
            indices = tf.reshape(positions + starts, [-1])  # [B * P]

        def layer(hidden):
            with tf.variable_scope("attention"):
                with tf.variable_scope("self"):
                    if positions is None:
                        length = self._shape[1]
                        projected = self._project(
                            hidden, ("query", "key", "value")
                        )
                    else:
                        length = tf.shape(positions)[1]
                        rows = self._kernels.gather(hidden, indices)
                        projected = self._project(rows, ("query",))
                        projected += self._project(hidden, ("key", "value"))
                        hidden = rows
                    context = self._attend(
                        projected, length, mask, attention_seed
                    )
                with tf.variable_scope("output"):
                    hidden = self._add_and_norm(
                        context, hidden, output_seeds[0]
                    )
            with tf.variable_scope("intermediate"):
                wide = self._kernels.gelu(
                    self._dense(hidden, config.intermediate_size)
                )  # [N, F]
            with tf.variable_scope("output"):
                return self._add_and_norm(wide, hidden, output_seeds[1])

        return recomputed(layer, hidden) if recompute else layer(hidden)

    def _dense(self, rows, width):
        return dense(
            rows,
            width,
            "dense",
            kernels=self._kernels,
            dtype=self._kernels.compute_dtype,
            initializer_range=self._config.initializer_range,
        )

    def _add_and_norm(self, rows, residual, seed):
        """LayerNorm(residual + dropout(dense(rows))), [N, H]."""
        hidden = self._dense(rows, self._config.hidden_size)
        hidden = self._drop(hidden, self._config.hidden_dropout_prob, seed)
        return layer_norm(
            hidden + residual, self._config.layer_norm_eps, self._kernels
        )

    def _attend(self, projected, length, mask, seed):
        """Multi-head attention, before its output product.

        Args:
          projected: query [B * length, H], key and value [B * S, H].
          length: queries per sequence: S or P.
          mask: see `transform`.
          seed: of the dropout, or None.

        Returns:
          [B * length, H].
        """
        config, matmul = self._config, self._kernels.matmul
        heads = config.num_attention_heads
        size = config.hidden_size // heads

        def by_head(rows, length):
            split = tf.reshape(rows, [self._shape[0], length, heads, size])
            return tf.transpose(split, [0, 2, 1, 3])  # [B, A, length, D]

        query = by_head(projected[0], length)
        key, value = [by_head(rows, self._shape[1]) for rows in projected[1:]]
        scores = matmul(
            query * (1.0 / math.sqrt(size)), key, transpose_b=True
        )  # [B, A, length, S]
        weights = tf.nn.softmax(tf.cast(scores, tf.float32) + mask)
        weights = tf.cast(weights, value.dtype)
        weights = self._drop(weights, config.attention_probs_dropout_prob, seed)
        context = matmul(weights, value)  # [B, A, length, D]
        return tf.reshape(
            tf.transpose(context, [0, 2, 1, 3]), [-1, config.hidden_size]
        )  # [N, H]

    def _project(self, rows, names):
        """Some of query, key and value, each [N, H], by one product."""
        width = self._config.hidden_size
        parts = []
        for name in names:
            with tf.variable_scope(name):
                parts.append(
                    dense_variables(
                        width, width, self._config.initializer_range, rows.dtype
                    )
                )
        kernels, biases = zip(*parts)
        product = self._kernels.matmul(rows, tf.concat(kernels, axis=1))
        product = bias_add(product, tf.concat(biases, axis=0))
        return tf.split(product, len(names), axis=1)


def recomputed(
    function: typing.Callable[[tf.Tensor], tf.Tensor], rows: tf.Tensor
) -> tf.Tensor:
    """function(rows); the backward pass computes its activations again.

    Args:
      function: builds a graph from one tensor; its variables are those of the
        open scope.
      rows: float tensor.

    Source: Chen et al. 2016 (arXiv:1604.06174).
    """
    scope = tf.get_variable_scope()
    first = function(rows)
    variables = scope.trainable_variables()

    @tf.custom_gradient
    def call(first, rows, *_):
        def gradient(upstream):
            # The dependency keeps TensorFlow from merging the second pass with
            # the first, or running both at once.
            with tf.control_dependencies([upstream]):
                again = tf.identity(rows)
            with tf.variable_scope(
                scope, reuse=True, auxiliary_name_scope=False
            ):
                second = function(again)
            return [None] + tf.gradients(
                second, [again] + variables, grad_ys=upstream
            )

        return tf.identity(first), gradient

    # Past stop_gradient nothing keeps the first pass's activations.
    return call(tf.stop_gradient(first), rows, *variables)


def _attention_mask(config, input_ids, input_mask, sequence_starts):
    """0 where a position is visible, else -1e4: float32 [B, 1, 1 or S, S].

    fp16, in which an NPU may compute it, has numbers up to 65504.
    """
    if sequence_starts is not None:
        return _block_diagonal_mask(sequence_starts)
    if input_mask is None:
        input_mask = tf.not_equal(input_ids, config.pad_token_id)
    visible = tf.cast(input_mask, tf.float32)
    return (visible[:, tf.newaxis, tf.newaxis, :] - 1.0) * 1e4


def _block_diagonal_mask(sequence_starts, positions=None):
    """0 within a sequence, else -1e4: float32 [B, 1, S or P, S].

    Args:
      sequence_starts: see RobertaModel.
      positions: int32 [B, P] of the queries; None: everywhere.

    Source: Krell et al. 2021 (arXiv:2107.02027), section 3.2.
    """
    queries = sequence_starts
    if positions is not None:
        shape = tf.shape(sequence_starts)
        rows = tf.range(shape[0])[:, tf.newaxis] * shape[1]
        queries = tf.gather(tf.reshape(sequence_starts, [-1]), positions + rows)
    visible = tf.equal(
        queries[:, :, tf.newaxis], sequence_starts[:, tf.newaxis, :]
    )
    return (tf.cast(visible, tf.float32)[:, tf.newaxis] - 1.0) * 1e4


def normal_variable(
    name: str, shape: typing.List[int], stddev: float, dtype=tf.float32
) -> tf.Tensor:
    """A variable of the open scope, initially normal within 2 stddev.

    Its values follow from the graph's seed and its name alone, so that every
    device, precision and TensorFlow starts from the same weights.
    """
    full_name = f"{tf.get_variable_scope().name}/{name}"

    def initial(shape, dtype=tf.float32, partition_info=None):
        seed = [
            (tf.get_default_graph().seed or 0) & 0x7FFFFFFF,
            zlib.crc32(full_name.encode()) & 0x7FFFFFFF,
        ]
        return tf.random.stateless_truncated_normal(
            shape, seed, stddev=stddev, dtype=dtype
        )

    return tf.get_variable(name, shape, dtype, initial)


def dense_variables(
    rows: int, columns: int, stddev: float, dtype: tf.DType
) -> typing.Tuple[tf.Tensor, tf.Tensor]:
    """kernel [rows, columns] and bias [columns] of the open scope."""
    return (
        normal_variable("kernel", [rows, columns], stddev, dtype),
        tf.get_variable("bias", [columns], dtype, tf.zeros_initializer()),
    )


def dense(
    rows: tf.Tensor,
    width: int,
    name: str,
    *,
    initializer_range: float,
    kernels: Kernels = Kernels(),
    dtype: tf.DType = tf.float32,
) -> tf.Tensor:
    """rows [..., I] times a kernel [I, width] plus a bias, in dtype."""
    with tf.variable_scope(name):
        kernel, bias = dense_variables(
            rows.shape.as_list()[-1], width, initializer_range, dtype
        )
    product = kernels.matmul(tf.cast(rows, dtype), kernel)
    return bias_add(product, bias)


def layer_norm(
    rows: tf.Tensor, epsilon: float, kernels: Kernels = Kernels()
) -> tf.Tensor:
    """LayerNorm over the last axis, statistics in float32; dtype of rows."""
    width = rows.shape.as_list()[-1]
    with tf.variable_scope("LayerNorm"):
        beta = tf.get_variable(
            "beta", [width], tf.float32, tf.zeros_initializer()
        )
        gamma = tf.get_variable(
            "gamma", [width], tf.float32, tf.ones_initializer()
        )
    normed = kernels.normalize(
        tf.cast(rows, kernels.norm_dtype or rows.dtype), gamma, beta, epsilon
    )
    return tf.cast(normed, rows.dtype)


def masked_lm_logits(
    config: RobertaConfig,
    hidden: tf.Tensor,
    embedding_table: tf.Tensor,
    kernels: Kernels = Kernels(),
) -> tf.Tensor:
    """Scores of all vocabulary entries at masked positions.

    Args:
      config: RobertaConfig.
      hidden: [N, H], the encoder's rows at those positions.
      embedding_table: [V, H], the model's word embeddings (tied weights).
      kernels: Kernels.

    Returns:
      float32 [N, V].
    """
    dtype = kernels.head_dtype
    with tf.variable_scope(
        "cls/predictions", custom_getter=kernels.variable_getter
    ):
        with tf.variable_scope("transform"):
            hidden = kernels.gelu(
                dense(
                    hidden,
                    config.hidden_size,
                    "dense",
                    dtype=dtype,
                    initializer_range=config.initializer_range,
                    kernels=kernels,
                )
            )
            hidden = layer_norm(hidden, config.layer_norm_eps, kernels)
        bias = tf.get_variable(
            "output_bias",
            [config.vocab_size],
            tf.float32,
            tf.zeros_initializer(),
        )
    logits = kernels.matmul(
        hidden, tf.cast(embedding_table, dtype), transpose_b=True
    )
    return tf.cast(logits, tf.float32) + bias


def squad_logits(
    config: RobertaConfig,
    sequence_output: tf.Tensor,
    kernels: Kernels = Kernels(),
) -> typing.Tuple[tf.Tensor, tf.Tensor]:
    """Scores of each token as first and as last token of the answer.

    Args:
      config: RobertaConfig.
      sequence_output: [B, S, H].
      kernels: Kernels.

    Returns:
      (start, end), each float32 [B, S].
    """
    with tf.variable_scope("cls/squad", custom_getter=kernels.variable_getter):
        weights = normal_variable(
            "output_weights", [2, config.hidden_size], config.initializer_range
        )
        bias = tf.get_variable(
            "output_bias", [2], tf.float32, tf.zeros_initializer()
        )
    rows = tf.reshape(
        tf.cast(sequence_output, tf.float32), [-1, config.hidden_size]
    )
    logits = tf.nn.bias_add(tf.matmul(rows, weights, transpose_b=True), bias)
    start, end = tf.unstack(by_sequence(logits, sequence_output), axis=2)
    return start, end


def answerable_logits(
    config: RobertaConfig,
    sequence_output: tf.Tensor,
    kernels: Kernels = Kernels(),
) -> tf.Tensor:
    """Score of "this window contains an answer", from `<s>`.

    Source: Liu et al. 2019, section 5.2: a binary classifier whose loss is
    added to the span loss.

    Returns:
      float32 [B].
    """
    first = tf.cast(sequence_output[:, 0], tf.float32)
    with tf.variable_scope("cls/squad", custom_getter=kernels.variable_getter):
        logits = dense(
            first, 1, "answerable", initializer_range=config.initializer_range
        )
    return tf.squeeze(logits, axis=1)


# Seeds of a head are counted from here: the encoder has fewer.
_FIRST_HEAD_SEED = 1 << 20


def _head_dropout(config, kernels, seed):
    """The dropout of a head; without a seed (not in training) the identity.

    Its rate is classifier_dropout, hidden_dropout_prob by default.
    """
    rate = config.classifier_dropout
    if rate is None:
        rate = config.hidden_dropout_prob
    if seed is None or not rate:
        return lambda x: x
    seeds = _seeds(seed, 2, kernels, _FIRST_HEAD_SEED)
    return lambda x: kernels.dropout(x, rate, next(seeds))


def _head_on_first(config, first, scope, outputs, drop, kernels):
    """dense, tanh, dropout, out_proj: [B, H] -> float32 [B, outputs]."""
    with tf.variable_scope(scope, custom_getter=kernels.variable_getter):
        hidden = tf.tanh(
            dense(
                first,
                config.hidden_size,
                "dense",
                dtype=kernels.head_dtype,
                initializer_range=config.initializer_range,
                kernels=kernels,
            )
        )
        return dense(
            drop(tf.cast(hidden, tf.float32)),
            outputs,
            "out_proj",
            initializer_range=config.initializer_range,
        )


def classification_logits(
    config: RobertaConfig,
    sequence_output: tf.Tensor,
    num_labels: int,
    kernels: Kernels = Kernels(),
    *,
    dropout_seed: typing.Optional[tf.Tensor] = None,
) -> tf.Tensor:
    """Scores of a text's labels, or the number of a regression.

    Args:
      config: RobertaConfig.
      sequence_output: [B, S, H].
      num_labels: labels; 1 for a regression.
      kernels: Kernels.
      dropout_seed: int32 [2] in training, else None.

    Returns:
      float32 [B, num_labels].

    Source: RobertaClassificationHead of Hugging Face: dropout, dense, tanh,
    dropout, out_proj on `<s>`; also fairseq's sentence_classification_head.
    """
    drop = _head_dropout(config, kernels, dropout_seed)
    return _head_on_first(
        config,
        drop(sequence_output[:, 0]),
        "cls/classification",
        num_labels,
        drop,
        kernels,
    )


def multiple_choice_logits(
    config: RobertaConfig,
    sequence_output: tf.Tensor,
    num_choices: int,
    kernels: Kernels = Kernels(),
    *,
    dropout_seed: typing.Optional[tf.Tensor] = None,
) -> tf.Tensor:
    """Scores of the options of a question, each encoded as one sequence.

    Args:
      config: RobertaConfig.
      sequence_output: [B * C, S, H]; the options of a question follow each
        other.
      num_choices: C, options of a question.
      kernels, dropout_seed: see `classification_logits`.

    Returns:
      float32 [B, C].

    Source: RobertaForMultipleChoice of Hugging Face: pooler (dense, tanh) on
    `<s>`, dropout, one output.
    """
    drop = _head_dropout(config, kernels, dropout_seed)
    scores = _head_on_first(
        config, sequence_output[:, 0], "cls/multiple_choice", 1, drop, kernels
    )
    return tf.reshape(scores, [-1, num_choices])


def tagging_logits(
    config: RobertaConfig,
    sequence_output: tf.Tensor,
    num_labels: int,
    kernels: Kernels = Kernels(),
    *,
    dropout_seed: typing.Optional[tf.Tensor] = None,
) -> tf.Tensor:
    """Scores of each token's labels.

    Args:
      config, sequence_output, num_labels, kernels, dropout_seed: see
        `classification_logits`.

    Returns:
      float32 [B, S, num_labels].

    Source: RobertaForTokenClassification of Hugging Face: dropout, dense.
    """
    drop = _head_dropout(config, kernels, dropout_seed)
    rows = tf.reshape(
        drop(tf.cast(sequence_output, tf.float32)), [-1, config.hidden_size]
    )
    with tf.variable_scope("cls", custom_getter=kernels.variable_getter):
        logits = dense(
            rows,
            num_labels,
            "tagging",
            initializer_range=config.initializer_range,
        )
    return by_sequence(logits, sequence_output)
