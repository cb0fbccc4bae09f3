# SPDX-License-Identifier: Apache-2.0
"""Settings and objects that all training commands share."""

import dataclasses
import re
import typing

import tqdm
from absl import flags

import configuration
import device as devices
import optimization
from common import command_line, errors
from training import checkpoints, divergence
from weights import model_directory

# Characters that TensorFlow misreads in the name of a checkpoint.
_PATTERN = re.compile("[*?\\[\\]\\\\\x00-\x1f\ud800-\udfff]")

_SURROGATE = re.compile("[\ud800-\udfff]")

# Of an update on one device: positions are int32, with four choices per
# question.
_MAX_TOKENS = 2**29


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Flags that all training commands share."""

    bert_config_file: str = command_line.flag(
        "",
        "The model's config.json, as Hugging Face writes it. Default: the one "
        "beside --init_checkpoint.",
        group=command_line.FIRST,
    )
    init_checkpoint: str = command_line.flag(
        "",
        "Initial weights of a new run: a checkpoint's prefix, a directory of "
        "checkpoints, one of Hugging Face's files, hf:NAME of a model on its "
        "Hub (hf:NAME@REVISION), or fairseq's model.pt. Without --do_train, "
        "the checkpoint to evaluate.",
    )
    output_dir: str = command_line.flag(
        "", "Directory of checkpoints and results; a run in it is resumed."
    )
    do_train: bool = command_line.flag(False, "Whether to train.")
    max_seq_length: int = command_line.flag(
        512, "Tokens per sequence.", lower=4, group=command_line.DATA
    )
    cache_dir: str = command_line.flag(
        "~/.cache/roberta-tf1",
        "Where an --init_checkpoint of another format is converted to, once.",
        group=command_line.MODEL,
    )
    allow_other_tokenizer: bool = command_line.flag(
        False,
        "Use another tokenizer than that of the checkpoint, with a warning.",
    )
    out_log_dir: str = command_line.flag(
        "",
        "Directory of TensorBoard scalars. Default: output_dir.",
        group=command_line.TRAINING,
    )
    allow_changed_run: bool = command_line.flag(
        False,
        "Resume with other data, seed, optimizer or model config than the "
        "run began with (run.json), with a warning.",
    )
    train_batch_size: int = command_line.flag(
        32,
        "Sequences per device and micro-batch; the global batch is "
        "train_batch_size x num_accumulation_steps x devices.",
        lower=1,
    )
    pack_sequences: bool = command_line.flag(
        False,
        "Put several short sequences into a row of max_seq_length tokens, "
        "each attending to itself alone: one shape with little padding. "
        "train_batch_size is then the mean number of sequences.",
    )
    num_accumulation_steps: int = command_line.flag(
        1, "Micro-batches per update.", lower=1
    )
    allreduce_post_accumulation: bool = command_line.flag(
        True,
        "Average gradients over devices once per update, not once per "
        "micro-batch.",
    )
    optimizer_type: str = command_line.flag(
        "adam", "The optimizer.", choices=("adam", "lamb")
    )
    learning_rate: float = command_line.flag(
        1e-4, "Highest learning rate.", lower=0
    )
    learning_rate_schedule: str = command_line.flag(
        "linear",
        "The learning rate after the warm-up: linear or cosine to 0 at the "
        "last step, or constant.",
        choices=optimization.SCHEDULES,
    )
    adam_beta1: float = command_line.flag(
        0.9, "Decay of the first moment, below 1.", lower=0, upper=1
    )
    adam_beta2: float = command_line.flag(
        0.98, "Decay of the second moment, below 1.", lower=0, upper=1
    )
    adam_epsilon: float = command_line.flag(
        1e-6, "Added to the root of the second moment; above 0.", lower=0
    )
    weight_decay_rate: float = command_line.flag(
        0.01, "Decoupled weight decay; not of biases and LayerNorm.", lower=0
    )
    clip_norm: float = command_line.flag(
        1.0, "Largest norm of the gradients; 0 turns clipping off.", lower=0
    )
    npu_bert_clip_by_global_norm: bool = command_line.flag(
        True, "Clip by the norm of all gradients; False clips each by its own."
    )
    layerwise_lr_decay: float = command_line.flag(
        1.0,
        "Factor on the learning rate from one layer to the one below.",
        lower=0.01,
        upper=1,
    )
    recompute_layers: bool = command_line.flag(
        False,
        "Compute activations again in the backward pass: less memory, "
        "about a third more time.",
    )
    save_checkpoints_steps: int = command_line.flag(
        1000, "Steps between checkpoints.", lower=1
    )
    keep_checkpoint_max: int = command_line.flag(
        5, "Checkpoints to keep.", lower=2
    )
    evaluate_every_steps: int = command_line.flag(
        0,
        "Training steps between evaluations of --eval_files_dir, "
        "--predict_file or --eval_file while training; 0 for none.",
        lower=0,
    )
    keep_best: bool = command_line.flag(
        False, "Keep a copy of the best checkpoint in output_dir/best."
    )
    early_stopping_patience: int = command_line.flag(
        0,
        "Stop training after so many evaluations without a better score; 0 "
        "never stops.",
        lower=0,
    )
    evaluate_checkpoints: str = command_line.flag(
        "newest",
        "What to evaluate or predict with: the newest checkpoint, the best "
        "one, the newest after scoring all, or after scoring those of a run "
        "in another process as they appear (watch).",
        choices=("newest", "best", "all", "watch"),
    )
    display_loss_steps: int = command_line.flag(
        100, "Steps between log lines.", lower=1
    )
    display_loss_seconds: float = command_line.flag(
        10.0,
        "Most seconds between log lines, where steps are slow; 0 for any "
        "number. The first step has a line too.",
        lower=0,
    )
    report_loss: bool = command_line.flag(
        True,
        "Average the logged loss over all devices; False logs rank 0's own.",
    )
    verbose_logging: bool = command_line.flag(
        False, "Log every variable and every setting."
    )
    divergence_guard: str = command_line.flag(
        "off",
        "What to do with a run that diverges: stop, or rollback, which "
        "restores an earlier checkpoint and skips the batches in which it "
        "diverged.",
        choices=divergence.MODES,
    )
    divergence_max_rollbacks: int = command_line.flag(
        3, "Largest number of rollbacks in a run.", lower=0
    )
    divergence_deviations: float = command_line.flag(
        6.0, "Deviations above the running mean that a loss may reach.", lower=1
    )
    npu_bert_debug: bool = command_line.flag(
        False, "Train without dropout and in the order of the records."
    )
    random_seed: int = command_line.flag(
        12345,
        "Seed of record order, masks, dropout and new weights.",
        lower=0,
        upper=2**31 - 1,
    )
    iterations_per_loop: int = command_line.flag(
        1000,
        "NPU: steps on the device per call from the host.",
        lower=1,
        group=command_line.NPU,
    )

    def __post_init__(self):
        if not self.output_dir:
            raise errors.UserError("no output directory; pass --output_dir")
        if _PATTERN.search(self.output_dir):
            raise errors.UserError(
                f"--output_dir={self.output_dir!r}: TensorFlow reads *, ?, [, "
                "] and \\ in the name of a checkpoint as a pattern and could "
                "not resume from it; use a name without them and without "
                "control characters"
            )
        if _SURROGATE.search(self.out_log_dir):
            raise errors.UserError(
                f"--out_log_dir={self.out_log_dir!r}: not UTF-8, as TensorFlow "
                "expects; use another name"
            )
        if self.keep_best and not self.evaluates:
            raise errors.UserError(
                "--keep_best: no evaluations to compare; pass "
                "--evaluate_every_steps"
            )
        if self.early_stopping_patience and not self.evaluate_every_steps:
            raise errors.UserError(
                "--early_stopping_patience: no evaluations to wait for; pass "
                "--evaluate_every_steps"
            )
        if (
            self.do_train
            and self.evaluate_checkpoints == "best"
            and not self.keep_best
        ):
            raise errors.UserError(
                "--evaluate_checkpoints=best: training keeps no best "
                "checkpoint; pass --keep_best"
            )
        if self.do_train and self.scores_checkpoints:
            raise errors.UserError(
                f"--evaluate_checkpoints={self.evaluate_checkpoints}: scores "
                "the checkpoints of a run; pass it without --do_train"
            )
        # A step would divide by zero.
        for name, value, expected in (
            ("adam_beta1", 1, "below 1"),
            ("adam_beta2", 1, "below 1"),
            ("adam_epsilon", 0, "above 0"),
        ):
            if getattr(self, name) == value:
                raise errors.UserError(
                    f"--{name} is {value}; expected a number {expected}, such "
                    f"as RoBERTa's {getattr(type(self), name):g}"
                )
        tokens = self.batch_size * self.max_seq_length
        if tokens > _MAX_TOKENS:
            raise errors.UserError(
                f"--train_batch_size={self.train_batch_size}, "
                f"--num_accumulation_steps={self.num_accumulation_steps} and "
                f"--max_seq_length={self.max_seq_length}: {tokens} tokens per "
                f"update on a device; expected at most {_MAX_TOKENS}, use "
                "smaller values"
            )

    @property
    def evaluates(self) -> bool:
        """Whether the data of the evaluation is read, also without do_eval."""
        return bool(self.evaluate_every_steps) or self.scores_checkpoints

    @property
    def scores_checkpoints(self) -> bool:
        """Whether several checkpoints of the run are scored."""
        return self.evaluate_checkpoints in ("all", "watch")

    @property
    def batch_size(self) -> int:
        """Sequences per update on one device."""
        return self.train_batch_size * self.num_accumulation_steps

    @property
    def log_dir(self) -> str:
        """Directory of TensorBoard scalars."""
        return self.out_log_dir or self.output_dir


@dataclasses.dataclass
class Training:
    """One training run.

    The graph is built again after a rollback; this outlives it.

    Attributes:
      config: of the model.
      run: flags.
      device: from environment.create.
      num_train_steps, num_warmup_steps: updates.
      sequences: of an epoch, 0 where they are not counted.
      sequences_per_row: on average, where they are packed; run.batch_size and
        records_seen count rows.
      num_train_epochs: as given; recorded in run.json.
      head: names of a head's variables; see `warm_start.load`.
      data: {name: value} of the training data; see `run_record.fixed`.
      task: model_directory.Task that the model is trained for.
      save_timer: times the saving of checkpoints.
      evaluation: evaluation.Evaluation while training, None for none.
      bar: shows the steps where standard error is a terminal.
      guard: watches the loss.
    """

    config: configuration.RobertaConfig
    run: RunConfig
    device: devices.Device
    num_train_steps: int
    num_warmup_steps: int
    sequences: int = 0
    sequences_per_row: float = 1.0
    num_train_epochs: float = 0.0
    head: typing.Sequence[str] = ()
    data: typing.Mapping[str, typing.Any] = dataclasses.field(
        default_factory=dict
    )
    task: model_directory.Task = model_directory.Task()
    save_timer: checkpoints.SaveTimer = dataclasses.field(
        default_factory=checkpoints.SaveTimer
    )
    evaluation: typing.Any = None
    bar: tqdm.tqdm = dataclasses.field(
        default_factory=lambda: tqdm.tqdm(disable=True)
    )
    guard: divergence.Guard = dataclasses.field(init=False)

    def __post_init__(self):
        self.guard = divergence.Guard(
            self.run.divergence_guard, self.run.divergence_deviations
        )

    def describe(
        self,
        data: typing.Mapping[str, typing.Any],
        sequences: int,
        num_train_epochs: float,
        plan: typing.Any = None,
    ) -> None:
        """Sets what the run tells of its data, in run.json and in its log.

        Args:
          data, sequences, num_train_epochs: see the attributes.
          plan: packed_batches.Plan of the sequences, if they are packed.
        """
        self.data = dict(data)
        self.sequences, self.num_train_epochs = sequences, num_train_epochs
        if plan:
            self.sequences_per_row = plan.sequences / plan.rows
            self.data["tokens_of_rows"] = plan.room


def model_config(run: RunConfig) -> configuration.RobertaConfig:
    """The config of --bert_config_file."""
    return configuration.RobertaConfig.from_json_file(run.bert_config_file)


def define_flags(
    task_class: type,
    run_defaults: typing.Optional[typing.Mapping[str, typing.Any]] = None,
    **task_defaults: typing.Any,
) -> None:
    """Declares the flags of a training command.

    Args:
      task_class: the dataclass of its own flags.
      run_defaults: {field of RunConfig: another default}.
      **task_defaults: the same of task_class.
    """
    command_line.define(RunConfig, **(run_defaults or {}))
    command_line.define(task_class, **task_defaults)
    command_line.define(devices.DeviceConfig)


def from_flags(
    task_class: type, flag_values: flags.FlagValues
) -> typing.Tuple[RunConfig, typing.Any, devices.DeviceConfig]:
    """The configs that `define_flags` declared, from parsed flags.

    Raises:
      errors.UserError: values that contradict each other.
    """
    return tuple(
        command_line.build(kind, flag_values)
        for kind in (RunConfig, task_class, devices.DeviceConfig)
    )
