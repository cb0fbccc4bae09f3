# SPDX-License-Identifier: Apache-2.0
"""Learning rates, optimizers, clipping, micro-batches and loss scaling.

One call chain serves every device:

    optimizer = MicroBatches(AdamW(rate), losses, count)   # here
    optimizer = device.wrap_optimizer(optimizer)   # averages, scales the loss
    gradients = optimizer.compute_gradients(tf.constant(1.0))
    update = optimizer.apply_gradients(gradients, global_step)

The argument of `compute_gradients` is the factor on every micro-batch's loss:
a wrapper that scales the loss multiplies this factor.
"""

import math
import re
import typing

import tensorflow.compat.v1 as tf

# Not decayed (Devlin et al. 2018, appendix A.2; also fairseq and Hugging Face).
_NOT_DECAYED = re.compile(r"(LayerNorm/(gamma|beta)|bias)$")
# A comparison with it is False for inf and nan; an Ascend 910 lacks is_finite.
_LARGEST = tf.float32.max


SCHEDULES = ("linear", "cosine", "constant")


def scheduled_rate(
    step: tf.Tensor,
    peak: float,
    num_train_steps: int,
    num_warmup_steps: int,
    schedule: str = "linear",
) -> tf.Tensor:
    """Linear warm-up from 0, then to 0 at the last step, or constant.

    The first update runs at rate 0 when there is a warm-up.

    Args:
      step: int tensor, updates made so far.
      peak: the highest rate.
      num_train_steps, num_warmup_steps: updates of the run, of the warm-up.
      schedule: one of SCHEDULES; cosine is the first half of a period.

    Returns:
      float32 scalar.

    Source: Hugging Face's get_linear_schedule_with_warmup,
    get_cosine_schedule_with_warmup, get_constant_schedule_with_warmup.
    """
    step = tf.cast(step, tf.float32)
    left = num_train_steps - step
    rest = max(1, num_train_steps - num_warmup_steps)
    falling = {
        "linear": lambda: peak * left / rest,
        "cosine": lambda: peak * (0.5 - 0.5 * tf.cos(math.pi * left / rest)),
        "constant": lambda: tf.constant(peak, tf.float32),
    }[schedule]()
    rising = peak * step / max(1, num_warmup_steps)
    rate = tf.where(step < num_warmup_steps, rising, falling)
    return tf.maximum(rate, 0.0)


def variable_name(variable: tf.Variable) -> str:
    """The variable's name without the output number."""
    return re.sub(r":\d+$", "", variable.name)


def is_decayed(name: str) -> bool:
    """Whether weight decay applies: not to biases and LayerNorm."""
    return _NOT_DECAYED.search(name) is None


def layer_wise_factor(name: str, decay: float, num_layers: int) -> float:
    """Factor on a variable's learning rate, smaller far from the output.

    Heads have 1, the last layer `decay`, the embeddings
    decay ** (num_layers + 1).

    Args:
      name: of the variable.
      decay: in (0, 1]; 1 gives every variable the same rate.
      num_layers: layers of the encoder.

    Source: Howard & Ruder 2018, section 3.2; Clark et al. 2020, appendix A.
    """
    layer = re.search(r"encoder/layer_(\d+)/", name)
    if layer:
        return decay ** (num_layers - int(layer.group(1)))
    return decay ** (num_layers + 1) if "/embeddings/" in name else 1.0


class _Optimizer(tf.train.Optimizer):
    """Slots, weight decay and the step count of AdamW and LAMB.

    global_step alone counts the updates, so that a skipped step changes
    nothing. Slots are variables NAME/adam_m and NAME/adam_v.
    """

    def __init__(
        self,
        learning_rate: typing.Union[float, tf.Tensor],
        *,
        beta1: float = 0.9,
        beta2: float = 0.98,
        epsilon: float = 1e-6,
        weight_decay_rate: float = 0.01,
        rate_factor: typing.Callable[[str], float] = lambda name: 1.0,
    ):
        """
        Args:
          learning_rate: float or scalar tensor.
          beta1, beta2: decay rates of the moments.
          epsilon: added to the square root of the second moment.
          weight_decay_rate: of variables that `is_decayed`.
          rate_factor: factor on a variable's rate, by the variable's name.
        """
        super().__init__(False, type(self).__name__)
        self._learning_rate = tf.convert_to_tensor(learning_rate, tf.float32)
        self._beta1 = beta1
        self._beta2 = beta2
        self._epsilon = epsilon
        self._weight_decay_rate = weight_decay_rate
        self._rate_factor = rate_factor

    def apply_gradients(self, grads_and_vars, global_step=None, name=None):
        """One update, which also increments global_step.

        Args:
          grads_and_vars: pairs; a gradient of None keeps its variable.
          global_step: the int64 variable that counts updates.
          name: name of the returned operation.
        """
        pairs = [(g, v) for g, v in grads_and_vars if g is not None]
        step = tf.cast(global_step, tf.float32) + 1.0
        # Operations of a single number, once for all variables.
        numbers = self._numbers(
            1.0 - tf.pow(self._beta1, step), 1.0 - tf.pow(self._beta2, step)
        )
        factors = [self._rate_factor(variable_name(v)) for _, v in pairs]
        rates = {
            factor: self._learning_rate * factor for factor in set(factors)
        }
        decays = {
            factor: rate * self._weight_decay_rate
            for factor, rate in rates.items()
            if self._weight_decay_rate
        }
        # Gradients are computed from weights of other layers: no variable
        # changes before the last gradient. One group of them, since an edge
        # from each gradient to each operation takes seconds to build.
        with tf.control_dependencies([tf.group(*(g for g, _ in pairs))]):
            updates = [
                self._update(g, v, rates[factor], decays.get(factor), numbers)
                for factor, (g, v) in zip(factors, pairs)
            ]
        with tf.control_dependencies(updates):
            return tf.assign_add(global_step, 1, name=name).op

    def _numbers(self, first, second):
        """What `_apply` needs beside tensors of a variable's shape.

        Args:
          first, second: bias corrections of the moments, scalars.
        """
        return first, second

    def _update(self, gradient, variable, rate, decay, numbers):
        name = variable_name(variable)
        slots = [
            tf.get_variable(
                name + suffix,
                shape=variable.shape,
                dtype=tf.float32,
                trainable=False,
                initializer=tf.zeros_initializer(),
            )
            for suffix in ("/adam_m", "/adam_v")
        ]
        return self._apply(
            tf.cast(gradient, tf.float32),
            variable,
            slots,
            rate,
            decay if is_decayed(name) else None,
            numbers,
        )


class AdamW(_Optimizer):
    """Adam with bias correction and decoupled weight decay.

    Source: Kingma & Ba 2014; Loshchilov & Hutter 2017; the same numbers as
    torch.optim.AdamW.
    """

    def _numbers(self, first, second):
        # TF's kernel takes beta powers, and an epsilon outside the correction:
        # m / (sqrt(v / c2) + e) = sqrt(c2) m / (sqrt(v) + sqrt(c2) e).
        return {
            "beta1_power": 1.0 - first,
            "beta2_power": 1.0 - second,
            "beta1": tf.constant(self._beta1),
            "beta2": tf.constant(self._beta2),
            "epsilon": self._epsilon * tf.sqrt(second),
        }

    def _apply(self, gradient, variable, slots, rate, decay, numbers):
        decayed = []
        if decay is not None:
            # w -= rate * decay * w, in one pass over the memory.
            decayed.append(
                tf.raw_ops.ApplyGradientDescent(
                    var=_ref(variable), alpha=decay, delta=variable
                )
            )
        with tf.control_dependencies(decayed):
            return tf.raw_ops.ApplyAdam(
                var=_ref(variable),
                m=_ref(slots[0]),
                v=_ref(slots[1]),
                lr=rate,
                grad=gradient,
                **numbers,
            ).op


class Lamb(_Optimizer):
    """LAMB: AdamW's direction, its length scaled by the layer's weights.

    Source: You et al. 2019 (arXiv:1904.00962), algorithm 2, with phi the
    identity.
    """

    def _apply(self, gradient, variable, slots, rate, decay, corrections):
        first, second = corrections
        m = self._beta1 * slots[0] + (1.0 - self._beta1) * gradient
        v = self._beta2 * slots[1] + (1.0 - self._beta2) * tf.square(gradient)
        direction = (m / first) / (tf.sqrt(v / second) + self._epsilon)
        if decay is not None:
            direction += self._weight_decay_rate * variable
        weights, length = tf.norm(variable), tf.norm(direction)
        trust = tf.where(
            tf.logical_and(weights > 0.0, length > 0.0),
            tf.div_no_nan(weights, length),
            1.0,
        )
        return tf.group(
            tf.assign(slots[0], m),
            tf.assign(slots[1], v),
            tf.assign_sub(variable, rate * trust * direction),
        )


def _ref(variable):
    """The reference that TF 1's kernels update in place."""
    return variable._ref()  # pylint: disable=protected-access


OPTIMIZERS = {"adam": AdamW, "lamb": Lamb}


class Wrapper(tf.train.Optimizer):
    """An optimizer that delegates to another one."""

    def __init__(self, optimizer):
        super().__init__(False, type(self).__name__)
        self._optimizer = optimizer

    def compute_gradients(self, loss, var_list=None, **_):
        return self._optimizer.compute_gradients(loss, var_list)

    def apply_gradients(self, grads_and_vars, global_step=None, name=None):
        return self._optimizer.apply_gradients(
            grads_and_vars, global_step, name
        )


class MicroBatches(Wrapper):
    """Sums gradients and values over the micro-batches of one update.

    A while loop runs them in sequence: memory is that of one micro-batch plus
    the sums, and no state is kept between two updates.
    """

    def __init__(
        self,
        optimizer: tf.train.Optimizer,
        losses: typing.Callable,
        count: int,
        reduce_each: typing.Optional[typing.Callable] = None,
    ):
        """
        Args:
          optimizer: applies the gradients.
          losses: function of the micro-batch's number (int32 scalar) giving
            (loss to differentiate, {name: float32 scalar to be summed}).
          count: micro-batches of one update.
          reduce_each: function on the list of one micro-batch's gradients, to
            average them over devices before they are summed, or None.
        """
        super().__init__(optimizer)
        self._losses = losses
        self._count = count
        self._reduce_each = reduce_each or list
        self.sums = None  # {name: scalar}, after compute_gradients

    def compute_gradients(self, loss, var_list=None, **_):
        """Gradients of the factor `loss` times the sum of all losses.

        Returns:
          [(gradient or None, variable)] as tf.train.Optimizer does.
        """
        if self._count == 1:
            pairs, self.sums = self._build(tf.constant(0), loss, var_list)
            return pairs
        # The first build tells which variables and values there are; its
        # operations are never run.
        with tf.name_scope("shapes"):
            pairs, sums = self._build(tf.constant(0), loss, var_list)
        names = sorted(sums)
        variables = [v for _, v in pairs]

        def body(index, total, sums):
            pairs, more = self._build(index, loss, variables)
            gradients = [g for g, _ in pairs if g is not None]
            return (
                index + 1,
                [t + g for t, g in zip(total, gradients)],
                [s + more[n] for s, n in zip(sums, names)],
            )

        start = [
            tf.constant(0),
            [tf.zeros(g.shape, g.dtype) for g, _ in pairs if g is not None],
            [tf.zeros([], sums[n].dtype) for n in names],
        ]
        with tf.variable_scope(tf.get_variable_scope(), reuse=True):
            _, gradients, sums = tf.while_loop(
                lambda index, *_: index < self._count,
                body,
                start,
                parallel_iterations=1,
                back_prop=False,
            )
        self.sums = dict(zip(names, sums))
        present = iter(gradients)
        return [(g if g is None else next(present), v) for g, v in pairs]

    def _build(self, index, factor, variables):
        """(pairs, {name: value}) of one micro-batch."""
        value, sums = self._losses(index)
        variables = variables or tf.trainable_variables()
        gradients = [
            g if g is None else tf.convert_to_tensor(g)
            for g in tf.gradients(value * factor, variables)
        ]
        reduced = _map_present(self._reduce_each, gradients)
        return list(zip(reduced, variables)), sums


def _map_present(function, gradients):
    """function over the gradients that are not None; None stays in place."""
    mapped = iter(function([g for g in gradients if g is not None]))
    return [None if g is None else next(mapped) for g in gradients]


class Averaged(Wrapper):
    """Averages the gradients over devices after they are summed."""

    def __init__(self, optimizer, average):
        """
        Args:
          optimizer: the optimizer to wrap.
          average: function on a list of tensors.
        """
        super().__init__(optimizer)
        self._average = average

    def compute_gradients(self, loss, var_list=None, **_):
        pairs = self._optimizer.compute_gradients(loss, var_list)
        gradients = _map_present(self._average, [g for g, _ in pairs])
        return list(zip(gradients, [v for _, v in pairs]))


def half_squares(gradients: typing.Iterable) -> typing.List[tf.Tensor]:
    """Half of each gradient's sum of squares, float32; None is skipped."""
    return [
        tf.nn.l2_loss(tf.cast(g, tf.float32))
        for g in gradients
        if g is not None
    ]


def global_norm(gradients: typing.Iterable) -> tf.Tensor:
    """Square root of the sum of all squares, float32; None is skipped.

    Stacked, since the order in which tf.add_n sums more than two tensors, and
    with it the last bit, depends on which of them it may overwrite in time.
    """
    return tf.sqrt(2.0 * tf.reduce_sum(tf.stack(half_squares(gradients))))


def clip(
    grads_and_vars: typing.Iterable,
    clip_norm: float,
    by_global_norm: bool,
    norm: tf.Tensor,
) -> typing.List[typing.Tuple]:
    """Gradients with a norm of at most clip_norm.

    Args:
      grads_and_vars: pairs.
      clip_norm: the largest norm; 0 does not clip.
      by_global_norm: one factor for all gradients, or one for each.
      norm: their global norm, a float32 scalar.

    Returns:
      pairs.
    """
    if not clip_norm:
        return list(grads_and_vars)

    def factor(length):
        return clip_norm / tf.maximum(length, clip_norm)

    def shorten(gradients):
        if by_global_norm:
            shared = factor(norm)
            return [g * shared for g in gradients]
        return [g * factor(tf.norm(g)) for g in gradients]

    gradients, variables = zip(*grads_and_vars)
    return list(zip(_map_present(shorten, gradients), variables))


class LossScale:
    """The factor on the loss that prevents underflow of fp16 gradients.

    Checkpoints contain its variables loss_scale, good_steps and bad_steps.
    """

    def __init__(
        self,
        initial,
        dynamic,
        *,
        incr_every_n_steps=1000,
        decr_every_n_nan_or_inf=1,
        incr_ratio=2.0,
        decr_ratio=0.5,
    ):
        """
        Args:
          initial: the first scale, at least 1.
          dynamic: whether it changes.
          incr_every_n_steps: good steps in a row before it grows.
          decr_every_n_nan_or_inf: overflows, in a row or not, before it
            shrinks.
          incr_ratio, decr_ratio: factors on the scale.
        """
        self._dynamic = dynamic
        self._incr_every_n_steps = incr_every_n_steps
        self._decr_every_n = decr_every_n_nan_or_inf
        self._incr_ratio = incr_ratio
        self._decr_ratio = decr_ratio

        def counter(name, dtype, value):
            return tf.get_variable(
                name,
                [],
                dtype,
                trainable=False,
                initializer=tf.constant_initializer(value, dtype),
            )

        self.scale = counter("loss_scale", tf.float32, initial)
        self._good = counter("good_steps", tf.int32, 0)
        self._bad = counter("bad_steps", tf.int32, 0)

    def update(self, finite):
        """Counts a step and changes the scale.

        Source: the rules of tf.contrib.mixed_precision's
        ExponentialUpdateLossScaleManager, with the scale never below 1.

        Args:
          finite: bool scalar, whether the step had finite gradients.
        """
        if not self._dynamic:
            return tf.no_op()
        zero = tf.constant(0)
        good = tf.where(finite, self._good + 1, zero)
        bad = tf.where(finite, self._bad + 0, self._bad + 1)
        grow = good >= self._incr_every_n_steps
        shrink = tf.logical_and(
            tf.logical_not(finite), bad >= self._decr_every_n
        )
        larger = self.scale * self._incr_ratio
        larger = tf.where(larger <= _LARGEST, larger, self.scale + 0.0)
        smaller = tf.maximum(1.0, self.scale * self._decr_ratio)
        scale = tf.where(
            grow, larger, tf.where(shrink, smaller, self.scale + 0.0)
        )
        restart = tf.logical_or(grow, shrink)
        values = (
            scale,
            tf.where(restart, zero, good),
            tf.where(restart, zero, bad),
        )
        variables = (self.scale, self._good, self._bad)
        with tf.control_dependencies(values):
            return tf.group(*map(tf.assign, variables, values))


class LossScaled(Wrapper):
    """Scales the loss, unscales the gradients, skips a step that overflows.

    A skipped step changes no weight, no moment and not global_step.

    Source: Micikevicius et al. 2017 (arXiv:1710.03740), section 3.2.
    """

    def __init__(self, optimizer, loss_scale=None):
        """
        Args:
          optimizer: the optimizer to wrap.
          loss_scale: LossScale; None for a scale of 1 without variables.
        """
        super().__init__(optimizer)
        self._scale = loss_scale
        self.loss_scale = loss_scale.scale if loss_scale else tf.constant(1.0)
        self.finite = None  # bool [G], after compute_gradients

    def compute_gradients(self, loss, var_list=None, **_):
        pairs = self._optimizer.compute_gradients(
            loss * self.loss_scale, var_list
        )
        back = 1.0 / self.loss_scale
        pairs = [
            (g if g is None else tf.cast(g, tf.float32) * back, v)
            for g, v in pairs
        ]
        squares = tf.stack(half_squares(g for g, _ in pairs))
        self.finite = squares <= _LARGEST
        return pairs

    def apply_gradients(self, grads_and_vars, global_step=None, name=None):
        finite = tf.reduce_all(self.finite)

        def update():
            with tf.control_dependencies(
                [self._optimizer.apply_gradients(grads_and_vars, global_step)]
            ):
                return tf.constant(True)

        applied = tf.cond(finite, update, lambda: tf.constant(False))
        with tf.control_dependencies([applied]):
            update = self._scale.update(finite) if self._scale else tf.no_op()
            return tf.group(update, name=name)
