# SPDX-License-Identifier: Apache-2.0
"""Small models and data, and runs of the real scripts on them."""

import json
import os
import re
import subprocess
import sys
import tempfile

import numpy as np
import tensorflow.compat.v1 as tf

import configuration
import tokenization
from common import tfrecord
from helpers import forked, single_records
from helpers.npu_ranks import STAND_IN
from helpers.paths import REPOSITORY
from weights import lazy_tensors, tf_checkpoint
from weights import names as weight_names

VOCAB_SIZE = 261  # 256 bytes and 5 special tokens
LENGTH = 16
PREDICTIONS = 4
# What another run on this machine may have exported.
_FOREIGN = (
    "RANK_SIZE",
    "RANK_ID",
    "RANK_TABLE_FILE",
    "DEVICE_ID",
    "ASCEND_DEVICE_ID",
    "JOB_ID",
    "NPU_STUB_OVERFLOW_STEPS",
    "PYTHONPATH",
)
_ITEM = re.compile(r"(\w+)=(\S+)")


def write_model(
    folder, *, dropout=0.0, layers=1, hidden_size=32, initializer_range=0.1
):
    """config.json, vocab.json and merges.txt of a model without merges."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "roberta",
                "vocab_size": VOCAB_SIZE,
                "hidden_size": hidden_size,
                "num_hidden_layers": layers,
                "num_attention_heads": 4,
                "intermediate_size": 2 * hidden_size,
                "hidden_act": "gelu",
                "hidden_dropout_prob": dropout,
                "attention_probs_dropout_prob": dropout,
                "max_position_embeddings": 514,
                "type_vocab_size": 1,
                "initializer_range": initializer_range,
                "layer_norm_eps": 1e-5,
                "pad_token_id": 1,
            }
        )
    )
    tokens = (
        ["<s>", "<pad>", "</s>", "<unk>"]
        + tokenization.byte_symbols()
        + ["<mask>"]
    )
    (folder / "vocab.json").write_text(
        json.dumps({token: number for number, token in enumerate(tokens)})
    )
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def write_trained(folder, parts, *, labels=3, seed=3, **config_values):
    """A trainer's output_dir with random weights; no TensorFlow is needed.

    Args:
      parts: keys of weight_names.PARTS beside the encoder.
      labels: of heads that have them.
      **config_values: for config.json.

    Returns:
      The prefix of its checkpoint, with the slots that training leaves.
    """
    path = write_model(folder, layers=2) / "config.json"
    values = dict(json.loads(path.read_text()), **config_values)
    path.write_text(json.dumps(values))
    random = np.random.RandomState(seed)
    tensors = {"global_step": np.int64(7)}
    for variable in weight_names.variables(
        {weight_names.BASE, *parts},
        configuration.RobertaConfig.from_dict(values),
    ):
        free = 1 if "answerable" in variable.tf else labels
        shape = [free if size is None else size for size in variable.tf_shape]
        value = random.normal(0.0, 0.2, shape).astype(np.float32)
        value = 1 + value if variable.tf.endswith("gamma") else value
        tensors[variable.tf] = value
        tensors[variable.tf + "/adam_m"] = tensors[variable.tf]
    prefix = str(folder / "model.ckpt-7")
    write_values(prefix, tensors)
    (folder / "checkpoint").write_text(
        'model_checkpoint_path: "model.ckpt-7"\n'
    )
    return prefix


def write_values(prefix, values):
    """Writes a checkpoint of {variable: array}."""
    tensors = {name: _tensor(value) for name, value in sorted(values.items())}
    with open(tf_checkpoint.data_file(prefix), "wb") as stream:
        index = tf_checkpoint.write_data(stream, tensors)
    with open(tf_checkpoint.index_file(prefix), "wb") as stream:
        stream.write(index)


def _tensor(value):
    dtype = {np.dtype("f4"): "F32", np.dtype("i8"): "I64"}[value.dtype]
    return lazy_tensors.Tensor(dtype, value.shape, lambda: value, "random")


def write_sequences(folder, count=64):
    """Dynamic records of random walks, which a model can learn a little."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(5)
    with tfrecord.RecordWriter(str(folder / "a.tfrecord")) as writer:
        for _ in range(count):
            steps = random.randint(1, 4, random.randint(6, LENGTH - 2))
            ids = 4 + (random.randint(200) + np.cumsum(steps)) % 200
            writer.write(
                single_records.encode_example(
                    {"input_ids": np.concatenate([[0], ids, [2]])}
                )
            )
    return folder


def write_squad(path, *, version_2=False, paragraphs=4):
    """A SQuAD file of short contexts; v2.0 has unanswerable questions."""

    def question(number, answer, start, impossible):
        entry = {
            "id": f"q{number}",
            "question": f"Where is {answer}?",
            "answers": []
            if impossible
            else [{"text": answer, "answer_start": start}],
        }
        return dict(entry, is_impossible=impossible) if version_2 else entry

    data = []
    for number in range(paragraphs):
        context = f"Town {number} lies on river {'abcdefg'[number] * 3}."
        answer = context[:6]
        data.append(
            {
                "context": context,
                "qas": [
                    question(2 * number, answer, 0, False),
                    question(
                        2 * number + 1,
                        context[-4:-1],
                        len(context) - 4,
                        version_2,
                    ),
                ],
            }
        )
    path.write_text(
        json.dumps(
            {
                "version": "2.0" if version_2 else "1.1",
                "data": [{"title": "t", "paragraphs": data}],
            }
        )
    )
    return path


def environment(*, npu=True, **more):
    """Variables of a run, with the stand-in's adapter or without."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if name not in _FOREIGN
    }
    variables.update(
        TF_CPP_MIN_LOG_LEVEL="2",
        PYTHONDONTWRITEBYTECODE="1",
        CUDA_VISIBLE_DEVICES="",
    )
    if npu:
        variables["PYTHONPATH"] = str(STAND_IN)
    variables.update(more)
    return variables


def command(script, flags, **named):
    """The command line of one of the repository's scripts."""
    return (
        [sys.executable, str(REPOSITORY / script)]
        + list(flags)
        + [f"--{name}={value}" for name, value in named.items()]
    )


def run(arguments, variables=None, *, code=0, cwd=None, timeout=180):
    """Runs a command to its end; its output, both streams together."""
    variables = variables or environment()
    with tempfile.NamedTemporaryFile() as output:
        if str(arguments[0]) == sys.executable:
            process = forked.Process(arguments, variables, output, output, cwd)
            exit_code = process.wait(timeout)
        else:
            exit_code = subprocess.run(
                [str(a) for a in arguments],
                env=variables,
                stdout=output,
                stderr=output,
                cwd=cwd,
                timeout=timeout,
            ).returncode
        output.seek(0)
        text = output.read().decode("utf-8", "replace")
    assert exit_code == code, text[-4000:]
    return text


def steps_of(output):
    """The log lines of training: list of {key: float}."""
    lines = [
        line[line.index("step=") :]
        for line in output.splitlines()
        if re.search(r" I step=\d+ loss=", line)
    ]
    return [
        {
            name: float(value)
            for name, value in _ITEM.findall(line)
            if name != "time_left"
        }
        for line in lines
    ]


def scalars_of(directory):
    """The TensorBoard scalars of a directory: {tag: {step: value}}."""
    found = {}
    for path in sorted(directory.glob("events*.train")) + sorted(
        directory.glob("events*.eval")
    ):
        for event in tf.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def values_of(prefix):
    """{variable: array} of a checkpoint."""
    return {
        name: tensor.read()
        for name, tensor in tf_checkpoint.load(str(prefix)).items()
        if tensor.dtype != "STRING"
    }


def losses_of(output):
    """The losses that training logged, float64 [n]."""
    return np.array([line["loss"] for line in steps_of(output)])
