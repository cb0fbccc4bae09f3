# SPDX-License-Identifier: Apache-2.0
"""RoBERTa's encoder and heads as a TensorFlow graph.

Axes, the same letters everywhere: B batch, S tokens of a sequence, H hidden
size, A heads, D head size (H = A * D), F feed-forward size, V vocabulary,
P positions of a sequence whose output is wanted, N rows of a flattened tensor
(B * S or B * P).

The module knows no flag, no device and no precision by name: what a device
does its own way comes in as `Kernels`. Variable names are BERT's, so that
checkpoints of that family load.

Source: Liu et al. 2019 (arXiv:1907.11692); Devlin et al. 2018; positions and
numerics as fairseq's and Hugging Face's RoBERTa.
"""

import math
import zlib

import tensorflow.compat.v1 as tf

from common import errors
from configuration import RobertaConfig  # noqa: F401 (a public name)
from kernels import Kernels


class RobertaModel:
    """The encoder: token ids in, hidden states out.

        model = RobertaModel(config, is_training=False, input_ids=input_ids)
        logits = masked_lm_logits(config, rows, model.get_embedding_table())

    A padded batch gives the same hidden states as the unpadded one; values at
    padded positions mean nothing.
    """

    def __init__(
        self,
        config,
        is_training,
        input_ids,
        input_mask=None,
        *,
        kernels=Kernels(),
        dropout_seed=None,
        recompute_layers=False,
        output_positions=None,
        scope="bert",
    ):
        """Builds the graph of the encoder.

        Args:
          config: RobertaConfig.
          is_training: whether dropout is applied.
          input_ids: int [B, S].
          input_mask: int [B, S], 1 for a token, 0 for padding; None means
            input_ids != pad_token_id. Positions follow input_ids alone.
          kernels: Kernels.
          dropout_seed: int32 [2]; needed where is_training and a rate > 0.
          recompute_layers: whether a layer's activations are computed again
            in the backward pass instead of being kept: less memory, about a
            third more time.
          output_positions: int32 [B, P], the positions at which alone the last
            layer's output is wanted, None for all. The layer then has keys
            and values everywhere and computes the rest at these positions;
            `get_rows` gives [B * P, H], other layers are whole.
          scope: the outermost variable scope.

        Raises:
          errors.UserError: S is beyond the config's positions.
        """
        length = input_ids.shape.as_list()[1]
        if length is not None and length > config.max_sequence_length:
            raise errors.UserError(
                f"a sequence of {length} tokens was given, but "
                f"max_position_embeddings {config.max_position_embeddings} has "
                f"positions for {config.max_sequence_length}; use "
                f"{config.max_sequence_length} or less"
            )
        self._config = config
        self._kernels = kernels
        self._scope = scope
        seeds = _Seeds(dropout_seed) if is_training else None
        layers = _Layers(config, kernels, seeds)
        with tf.variable_scope(scope, custom_getter=kernels.variable_getter):
            with tf.variable_scope("embeddings"):
                hidden, self._embedding_table = layers.embed(input_ids)
            self._shape = tf.shape(input_ids)
            self._static_shape = input_ids.shape.as_list()
            self._hidden = [hidden]  # each [N, H]
            self._is_whole = output_positions is None
            if input_mask is None:
                input_mask = tf.not_equal(input_ids, config.pad_token_id)
            mask = _attention_mask(input_mask)
            with tf.variable_scope("encoder"):
                for index in range(config.num_hidden_layers):
                    with tf.variable_scope(f"layer_{index}"):
                        is_last = index == config.num_hidden_layers - 1
                        hidden = layers.transform(
                            hidden,
                            mask,
                            self._shape,
                            recompute=recompute_layers,
                            positions=output_positions if is_last else None,
                        )
                    self._hidden.append(hidden)

    def _batched(self, rows):
        """[N, H] -> [B, S, H], with the static shape that is known."""
        batched = tf.reshape(
            rows, [self._shape[0], self._shape[1], self._config.hidden_size]
        )
        batched.set_shape(self._static_shape + [self._config.hidden_size])
        return batched

    def get_sequence_output(self):
        """The last layer's hidden states, [B, S, H], compute dtype."""
        if not self._is_whole:
            raise ValueError(
                "the last layer was computed at output_positions "
                "alone; get_rows() has them"
            )
        return self._batched(self._hidden[-1])

    def get_rows(self):
        """The last layer's hidden states, flattened: [N, H]."""
        return self._hidden[-1]

    def get_all_encoder_layers(self):
        """Each layer's hidden states, a list of [B, S, H]."""
        return [self._batched(rows) for rows in self._hidden[1:-1]] + [
            self.get_sequence_output()
        ]

    def get_embedding_output(self):
        """The embeddings after LayerNorm and dropout, [B, S, H]."""
        return self._batched(self._hidden[0])

    def get_embedding_table(self):
        """The word embeddings, [V, H] float32."""
        return self._embedding_table

    def get_pooled_output(self):
        """tanh of a dense layer over `<s>`, [B, H] of kernels.head_dtype.

        Its variables exist only where this is called.
        """
        first = self.get_sequence_output()[:, 0]
        with tf.variable_scope(
            self._scope,
            reuse=tf.AUTO_REUSE,
            custom_getter=self._kernels.variable_getter,
        ):
            with tf.variable_scope("pooler"):
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


class _Seeds:
    """One seed for every place that drops, all from one int32 [2]."""

    def __init__(self, seed, places=0):
        self._seed = seed
        self._places = places

    def next(self):
        if self._seed is None:
            raise ValueError("dropout in training needs dropout_seed")
        self._places += 1
        # An odd multiplier spreads the places over the 32 bits.
        place = (self._places * 0x9E3779B1) & 0x7FFFFFFF
        return tf.stack(
            [tf.bitwise.bitwise_xor(self._seed[0], place), self._seed[1]]
        )


class _Layers:
    """Builds embeddings and transformer layers from one set of settings."""

    def __init__(self, config, kernels, seeds):
        self._config = config
        self._kernels = kernels
        self._seeds = seeds

    def _drop(self, x, rate, seed):
        return self._kernels.dropout(x, rate, seed) if seed is not None else x

    def _seed(self, rate):
        return self._seeds.next() if self._seeds and rate > 0 else None

    def embed(self, input_ids):
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
        position_ids = tf.cumsum(token, axis=1) * token + config.pad_token_id
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

    def transform(self, hidden, mask, shape, *, recompute, positions=None):
        """One transformer layer.

        Args:
          hidden: [N, H].
          mask: float32 [B, 1, 1, S], 0 or a large negative number.
          shape: int32 [2], B and S.
          recompute: see RobertaModel.
          positions: int32 [B, P], where the output is wanted; None: everywhere.

        Returns:
          [N, H].
        """
        config = self._config
        length = shape[1]
        if positions is not None:
            starts = tf.range(shape[0])[:, tf.newaxis] * shape[1]
            wanted = tf.reshape(positions + starts, [-1])  # [B * P]
            length = tf.shape(positions)[1]
        rates = (
            config.attention_probs_dropout_prob,
            config.hidden_dropout_prob,
            config.hidden_dropout_prob,
        )
        seeds = [self._seed(rate) for rate in rates]

        def layer(seen):
            hidden = (
                seen
                if positions is None
                else self._kernels.gather(seen, wanted)
            )
            with tf.variable_scope("attention"):
                with tf.variable_scope("self"):
                    context = self._attend(
                        hidden, seen, mask, shape, length, seeds[0]
                    )
                with tf.variable_scope("output"):
                    hidden = self._add_and_norm(context, hidden, seeds[1])
            with tf.variable_scope("intermediate"):
                wide = self._kernels.gelu(
                    self._dense(hidden, config.intermediate_size)
                )  # [N, F]
            with tf.variable_scope("output"):
                return self._add_and_norm(wide, hidden, seeds[2])

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

    def _attend(self, hidden, seen, mask, shape, length, seed):
        """Multi-head attention of hidden to seen, before its output product.

        Args:
          hidden: [N, H], the rows that ask: `seen`, or some of it.
          seen: [B * S, H].
          mask, shape: see `transform`.
          length: rows of a sequence that ask: S or P.
          seed: of the dropout, or None.

        Returns:
          [N, H].
        """
        config, matmul = self._config, self._kernels.matmul
        heads = config.num_attention_heads
        size = config.hidden_size // heads

        def by_head(rows, length):
            split = tf.reshape(rows, [shape[0], length, heads, size])
            return tf.transpose(split, [0, 2, 1, 3])  # [B, A, length, D]

        if hidden is seen:
            projected = self._project(seen, ("query", "key", "value"))
        else:
            projected = self._project(hidden, ("query",)) + self._project(
                seen, ("key", "value")
            )
        query, key, value = map(
            by_head, projected, (length, shape[1], shape[1])
        )
        scores = matmul(
            query * (1.0 / math.sqrt(size)), key, transpose_b=True
        )  # [B, A, length, S]
        weights = tf.nn.softmax(tf.cast(scores, tf.float32) + mask)
        weights = tf.cast(weights, hidden.dtype)
        weights = self._drop(weights, config.attention_probs_dropout_prob, seed)
        context = matmul(weights, value)  # [B, A, length, D]
        return tf.reshape(
            tf.transpose(context, [0, 2, 1, 3]), [-1, config.hidden_size]
        )  # [N, H]

    def _project(self, rows, names):
        """Some of query, key and value, each [N, H], by one product."""
        width = self._config.hidden_size
        kernels, biases = [], []
        for name in names:
            with tf.variable_scope(name):
                kernel, bias = dense_variables(
                    width, width, self._config.initializer_range, rows.dtype
                )
            kernels.append(kernel)
            biases.append(bias)
        product = self._kernels.matmul(rows, tf.concat(kernels, axis=1))
        product = tf.nn.bias_add(product, tf.concat(biases, axis=0))
        return tf.split(product, len(names), axis=1)


def recomputed(function, rows):
    """function(rows), whose inner activations the backward pass recomputes.

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
            # The dependency keeps the second pass from being merged with the
            # first one or run along with it.
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

    # Past stop_gradient nothing holds on to the first pass's activations.
    return call(tf.stop_gradient(first), rows, *variables)


def _attention_mask(input_mask):
    """0 where a position may be seen, else -1e9: float32 [B, 1, 1, S]."""
    visible = tf.cast(input_mask, tf.float32)
    return (visible[:, tf.newaxis, tf.newaxis, :] - 1.0) * 1e9


class _TruncatedNormal:
    """Initial values that follow from the graph's seed and a name alone.

    Every device, precision and TensorFlow then starts from the same weights.
    """

    def __init__(self, stddev, name):
        self._stddev = stddev
        self._name = name

    def __call__(self, shape, dtype=tf.float32, partition_info=None):
        del partition_info
        seed = [
            (tf.get_default_graph().seed or 0) & 0x7FFFFFFF,
            zlib.crc32(self._name.encode()) & 0x7FFFFFFF,
        ]
        return tf.random.stateless_truncated_normal(
            shape, seed, stddev=self._stddev, dtype=dtype
        )


def normal_variable(name, shape, stddev, dtype=tf.float32):
    """A variable of the open scope, at first normal within 2 stddev."""
    full_name = f"{tf.get_variable_scope().name}/{name}"
    return variable(name, shape, _TruncatedNormal(stddev, full_name), dtype)


def variable(name, shape, initializer, dtype=tf.float32):
    """A variable of the open scope, seen as dtype."""
    return tf.get_variable(name, shape, dtype, initializer)


def dense_variables(rows, columns, stddev, dtype):
    """kernel [rows, columns] and bias [columns] of the open scope."""
    return (
        normal_variable("kernel", [rows, columns], stddev, dtype),
        variable("bias", [columns], tf.zeros_initializer(), dtype),
    )


def dense(
    rows, width, name, *, initializer_range, kernels=Kernels(), dtype=tf.float32
):
    """rows [..., I] times a kernel [I, width] plus a bias, in dtype."""
    with tf.variable_scope(name):
        kernel, bias = dense_variables(
            rows.shape.as_list()[-1], width, initializer_range, dtype
        )
    product = kernels.matmul(tf.cast(rows, dtype), kernel)
    return tf.nn.bias_add(product, bias)


def layer_norm(rows, epsilon, kernels=Kernels()):
    """LayerNorm over the last axis, computed in float32, dtype kept.

    The epsilon is config.json's in every precision.
    """
    width = rows.shape.as_list()[-1]
    with tf.variable_scope("LayerNorm"):
        beta = variable("beta", [width], tf.zeros_initializer())
        gamma = variable("gamma", [width], tf.ones_initializer())
    normed = kernels.normalize(tf.cast(rows, tf.float32), gamma, beta, epsilon)
    return tf.cast(normed, rows.dtype)


def masked_lm_logits(config, hidden, embedding_table, kernels=Kernels()):
    """Scores of every vocabulary entry at masked positions.

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
        bias = variable(
            "output_bias", [config.vocab_size], tf.zeros_initializer()
        )
    logits = kernels.matmul(
        hidden, tf.cast(embedding_table, dtype), transpose_b=True
    )
    return tf.cast(logits, tf.float32) + bias


def squad_logits(config, sequence_output, kernels=Kernels()):
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
        bias = variable("output_bias", [2], tf.zeros_initializer())
    shape = tf.shape(sequence_output)
    rows = tf.reshape(
        tf.cast(sequence_output, tf.float32), [-1, config.hidden_size]
    )
    logits = tf.nn.bias_add(tf.matmul(rows, weights, transpose_b=True), bias)
    logits = tf.reshape(logits, [shape[0], shape[1], 2])
    logits.set_shape(sequence_output.shape.as_list()[:2] + [2])
    start, end = tf.unstack(logits, axis=2)
    return start, end


def answerable_logits(config, sequence_output, kernels=Kernels()):
    """Score of "this question has an answer here", from `<s>`.

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


# Where the places of a head begin: the encoder's are fewer.
_HEAD_PLACES = 1 << 20


class _HeadDropout:
    """Dropout of a head: none without a seed, that is, outside of training.

    Its rate is classifier_dropout, or hidden_dropout_prob where there is none.
    """

    def __init__(self, config, kernels, seed):
        self._kernels = kernels
        self._rate = (
            config.hidden_dropout_prob
            if config.classifier_dropout is None
            else config.classifier_dropout
        )
        self._seeds = None if seed is None else _Seeds(seed, _HEAD_PLACES)

    def __call__(self, x):
        if self._seeds is None or not self._rate:
            return x
        return self._kernels.dropout(x, self._rate, self._seeds.next())


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
    config, sequence_output, num_labels, kernels=Kernels(), *, dropout_seed=None
):
    """Scores of a text's labels, or the number of a regression.

    Args:
      config: RobertaConfig.
      sequence_output: [B, S, H].
      num_labels: labels; 1 for a regression.
      kernels: Kernels.
      dropout_seed: int32 [2] in training, None else.

    Returns:
      float32 [B, num_labels].

    Source: RobertaClassificationHead of Hugging Face: dropout, dense, tanh,
    dropout, out_proj on `<s>`, as fairseq's sentence_classification_head.
    """
    drop = _HeadDropout(config, kernels, dropout_seed)
    return _head_on_first(
        config,
        drop(sequence_output[:, 0]),
        "cls/classification",
        num_labels,
        drop,
        kernels,
    )


def multiple_choice_logits(
    config,
    sequence_output,
    num_choices,
    kernels=Kernels(),
    *,
    dropout_seed=None,
):
    """Scores of the options of a question, each read as one sequence.

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
    drop = _HeadDropout(config, kernels, dropout_seed)
    scores = _head_on_first(
        config, sequence_output[:, 0], "cls/multiple_choice", 1, drop, kernels
    )
    return tf.reshape(scores, [-1, num_choices])


def tagging_logits(
    config, sequence_output, num_labels, kernels=Kernels(), *, dropout_seed=None
):
    """Scores of each token's labels.

    Args:
      config, sequence_output, num_labels, kernels, dropout_seed: see
        `classification_logits`.

    Returns:
      float32 [B, S, num_labels].

    Source: RobertaForTokenClassification of Hugging Face: dropout, dense.
    """
    drop = _HeadDropout(config, kernels, dropout_seed)
    shape = tf.shape(sequence_output)
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
    logits = tf.reshape(logits, [shape[0], shape[1], num_labels])
    logits.set_shape(sequence_output.shape.as_list()[:2] + [num_labels])
    return logits
