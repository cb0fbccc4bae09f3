# SPDX-License-Identifier: Apache-2.0
"""The run scripts on NPUs: real processes over a stand-in for the adapter.

What the stand-in cannot show (lowering to fp16, operators, timing) is not
shown here either.
"""

import json
import os
import re
import subprocess
import sys
from concurrent import futures

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from helpers import tiny
from helpers.paths import REPOSITORY

ADAPTER = "npu_device" if tf.__version__.startswith("2.6.") else "npu_bridge"
STATE = (
    "loss_scale",
    "good_steps",
    "bad_steps",
    "batches_seen",
    "records_seen",
)
OVERFLOW = 4  # the step in which one is planted
LARGE_SCALE = 2.0**22  # fp16 overflows
INF_NAN = {"NPU_STUB_INF_NAN": "1", "NPU_STUB_RELEASE": "M"}
# Clipping, and Adam with a small epsilon, would hide gradients of a wrong
# scale.
SIZES = dict(
    adam_epsilon=1e-3,
    clip_norm=0,
    max_seq_length=tiny.LENGTH,
    max_predictions_per_seq=tiny.PREDICTIONS,
    train_batch_size=8,
    num_train_steps=20,
    num_warmup_steps=2,
    learning_rate=1e-2,
)


class Runs:
    """Runs on one small model, all of them started at once.

    As many as there are cores go on at a time; a test waits for its own.
    """

    def __init__(self, folder):
        self.folder = folder
        self.model = tiny.write_model(folder / "model", layers=1)
        self.overflowing = tiny.write_model(
            folder / "overflowing", layers=1, initializer_range=1e3
        )
        self.records = tiny.write_sequences(folder / "records")
        self.squad = tiny.write_squad(folder / "squad.json")
        self._pool = futures.ThreadPoolExecutor(max(2, os.cpu_count() or 2))
        self._futures = {}

    def pretraining(self, name, **more):
        """The command line of a pre-training into directory `name`."""
        flags = dict(
            SIZES,
            bert_config_file=self.model / "config.json",
            input_files_dir=self.records,
            output_dir=self.folder / name,
            do_train=True,
            display_loss_steps=1,
            iterations_per_loop=1,
        )
        flags.update(more)
        return tiny.command("run_pretraining.py", [], **flags)

    def questions(self, name, **more):
        """The command line of fine-tuning and prediction."""
        flags = dict(
            vocab_file=self.model / "vocab.json",
            merges_file=self.model / "merges.txt",
            bert_config_file=self.model / "config.json",
            output_dir=self.folder / name,
            do_train=True,
            do_predict=True,
            train_file=self.squad,
            predict_file=self.squad,
            max_seq_length=64,
            doc_stride=16,
            max_query_length=32,
            train_batch_size=4,
            learning_rate=1e-2,
            num_train_epochs=5,
            num_workers=1,
            display_loss_steps=1,
            iterations_per_loop=1,
        )
        flags.update(more)
        return tiny.command("run_squad.py", [], **flags)

    def watched(self, name, plant="", **more):
        """The command line of six steps in fp16 that leave their variables."""
        line = self.pretraining(
            name, num_train_steps=6, manual_fp16=True, use_fp16_cls=True, **more
        )
        return (
            line[:1]
            + [
                REPOSITORY / "tests" / "helpers" / "watched.py",
                self.folder / (name + ".npz"),
                plant,
            ]
            + line[1:]
        )

    def start(self, name, line, npu=True, code=0, **variables):
        """Starts a command line; its output will be there by this name."""
        line = line + ["--accelerator=" + ("npu" if npu else "cpu")]
        self._futures[name] = self._pool.submit(
            tiny.run, line, tiny.environment(npu=npu, **variables), code=code
        )

    def output(self, name):
        return self._futures[name].result()

    def variables(self, name):
        """{variable: [1 + steps, ...]} of a watched run that has ended."""
        return dict(np.load(str(self.folder / (name + ".npz"))))

    def close(self):
        for future in self._futures.values():
            future.cancel()
        self._pool.shutdown()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    started = Runs(tmp_path_factory.mktemp("runs"))
    for name, npu in (("cpu", False), ("npu", True)):
        started.start(name, started.pretraining(name), npu)
        started.start("squad_" + name, started.questions("squad_" + name), npu)
        started.start(
            "overflow_" + name,
            started.watched("overflow_" + name, f"{OVERFLOW}:{LARGE_SCALE}"),
            npu,
        )
    started.start(
        "loops",
        started.pretraining(
            "loops",
            iterations_per_loop=10,
            save_checkpoints_steps=10,
            train_batch_size=4,
            num_accumulation_steps=2,
        ),
    )
    started.start(
        "squad_fp16",
        started.questions("squad_fp16", manual_fp16=True),
        NPU_STUB_OVERFLOW_STEPS="3",
    )
    started.start(
        "flagged",
        started.watched("flagged"),
        NPU_STUB_OVERFLOW_STEPS=str(OVERFLOW),
    )
    started.start(
        "endless",
        started.pretraining("endless", manual_fp16=True),
        code=1,
        NPU_STUB_OVERFLOW_STEPS="3-",
    )
    started.start(
        "flagged_unscaled",
        started.watched("flagged_unscaled", npu_bert_loss_scale=-1),
        NPU_STUB_OVERFLOW_STEPS=str(OVERFLOW),
    )
    started.start(
        "overflow_inf_nan",
        started.watched("overflow_inf_nan", f"{OVERFLOW}:{LARGE_SCALE}"),
        **INF_NAN,
    )
    for name, scale in (("forward", 0), ("forward_unscaled", -1)):
        line = started.pretraining(
            name,
            manual_fp16=True,
            npu_bert_loss_scale=scale,
            bert_config_file=started.overflowing / "config.json",
        )
        started.start(name, line, code=1, **INF_NAN)
    for name, half in (("float32", False), ("fp16", True)):
        started.start(
            name,
            started.pretraining(
                name,
                manual_fp16=half,
                use_fp16_cls=half,
                num_train_steps=60,
                train_batch_size=32,
                display_loss_steps=20,
            ),
            npu=False,
        )
    yield started
    started.close()


# --- One device -------------------------------------------------------------


def test_pretraining_gives_the_losses_of_the_cpu(runs):
    cpu = tiny.losses_of(runs.output("cpu"))
    npu = tiny.losses_of(runs.output("npu"))
    assert len(cpu) == 20 and cpu[-5:].mean() < cpu[:5].mean() - 0.1
    np.testing.assert_allclose(npu, cpu, rtol=0, atol=1e-4)


def test_squad_gives_the_losses_and_answers_of_the_cpu(runs):
    cpu = tiny.losses_of(runs.output("squad_cpu"))
    npu = tiny.losses_of(runs.output("squad_npu"))
    assert len(cpu) == 10 and cpu[-1] < cpu[0]
    np.testing.assert_allclose(npu, cpu, rtol=0, atol=1e-4)
    answers = [
        json.loads((runs.folder / name / "predictions.json").read_text())
        for name in ("squad_cpu", "squad_npu")
    ]
    assert answers[0] == answers[1] and len(answers[0]) == 8


def test_loops_on_the_device_count_updates(runs):
    cpu = tiny.steps_of(runs.output("cpu"))
    loops = tiny.steps_of(runs.output("loops"))
    assert [line["step"] for line in loops] == [10, 20]
    for line, wanted in zip(loops, (cpu[9], cpu[19])):
        assert line["loss"] == pytest.approx(wanted["loss"], abs=1e-4)
    scalars = tiny.scalars_of(runs.folder / "loops")
    assert set(scalars["tokens_per_second"]) == {20}  # the first is left out
    assert set(scalars["gradient_norm"]) == {10, 20}
    assert "weight_norm" not in scalars  # it would compile a second graph
    saved = {path.name for path in (runs.folder / "loops").glob("*.index")}
    assert saved == {f"model.ckpt-{step}.index" for step in (0, 10, 20)}
    # Nothing of the micro-batches is kept between two updates.
    names = [
        set(tiny.values_of(runs.folder / name / "model.ckpt-20"))
        for name in ("cpu", "loops")
    ]
    assert names[0] == names[1]


def test_fp16_with_dynamic_loss_scale_on_squad(runs):
    lines = tiny.steps_of(runs.output("squad_fp16"))
    assert [line["loss_scale"] for line in lines[:4]] == (
        [2**15, 2**15, 2**14, 2**14]
    )
    assert lines[-1]["overflows"] == 1 and lines[-1]["step"] == 10
    assert lines[-1]["loss"] < lines[0]["loss"]


def check_skipped_step(output, seen, scale):
    """Step OVERFLOW left nothing but a smaller scale and two counts."""
    for name, values in seen.items():
        if name not in STATE:
            np.testing.assert_array_equal(
                values[OVERFLOW - 1], values[OVERFLOW], err_msg=name
            )
    assert {"bert/embeddings/word_embeddings/adam_m", "global_step"} < set(seen)
    assert list(seen["global_step"][: OVERFLOW + 1]) == [0, 1, 2, 3, 3]
    assert list(seen["batches_seen"][: OVERFLOW + 1]) == [0, 1, 2, 3, 4]
    assert seen["loss_scale"][OVERFLOW] == scale / 2
    line = tiny.steps_of(output)[OVERFLOW - 1]
    assert (line["step"], line["overflows"]) == (3, 1)
    assert line["loss_scale"] == pytest.approx(scale / 2, rel=1e-5)
    # The step before changed them, and the run came to its end.
    weights = seen["bert/encoder/layer_0/output/dense/kernel"]
    assert (weights[2] != weights[3]).any()
    assert seen["global_step"][-1] == 6


def test_planted_flag_skips_the_step_and_halves_the_scale(runs):
    output = runs.output("flagged")
    seen = runs.variables("flagged")
    check_skipped_step(output, seen, 2.0**15)
    assert list(seen["global_step"]) == [0, 1, 2, 3, 3, 4, 5, 6]


@pytest.mark.parametrize("device", ["cpu", "npu", "inf_nan"])
def test_real_overflow_skips_the_step_and_halves_the_scale(runs, device):
    output = runs.output("overflow_" + device)
    check_skipped_step(
        output, runs.variables("overflow_" + device), LARGE_SCALE
    )


def test_endless_overflow_ends_the_run(runs):
    last = runs.output("endless").splitlines()[-1]
    assert "40 steps in a row overflowed after step 2" in last
    assert "the loss scale is down to 1;" in last


@pytest.mark.parametrize("name", ["forward", "forward_unscaled"])
def test_endless_overflow_in_the_forward_pass_ends_the_run(runs, name):
    """In INF/NaN mode, where the loss is not finite."""
    output = runs.output(name)
    lines = tiny.steps_of(output)
    assert [line["overflows"] for line in lines] == list(range(1, 40))
    last = output.splitlines()[-1]
    assert "40 steps in a row overflowed after step 0" in last
    assert "Traceback" not in output


def test_flag_skips_a_step_without_a_loss_scale(runs):
    output = runs.output("flagged_unscaled")
    seen = runs.variables("flagged_unscaled")
    assert "loss_scale" not in seen
    assert list(seen["global_step"]) == [0, 1, 2, 3, 3, 4, 5, 6]
    weights = seen["bert/encoder/layer_0/output/dense/kernel"]
    np.testing.assert_array_equal(weights[3], weights[4])
    assert tiny.steps_of(output)[-1]["overflows"] == 1


def test_fp16_ends_near_float32(runs):
    full, half = [
        tiny.losses_of(runs.output(name))[-1] for name in ("float32", "fp16")
    ]
    assert half == pytest.approx(full, rel=0.02)


# --- Several devices --------------------------------------------------------


def test_two_ranks_train_as_one_with_both_batches(runs):
    folder = runs.folder / "two"
    (folder / "corpus").mkdir(parents=True)
    (folder / "corpus" / "pretrain_data").symlink_to(runs.records)
    flags = dict(
        SIZES,
        train_batch_size=4,
        num_accumulation_steps=1,
        manual_fp16=False,
        use_fp16_cls=False,
        npu_bert_loss_scale=-1,
        display_loss_steps=1,
        iterations_per_loop=1,
    )
    tiny.run(
        ["bash", REPOSITORY / "scripts" / "run_8p.sh", "pretraining"]
        + [f"--{name}={value}" for name, value in flags.items()],
        tiny.environment(
            PYTHON=sys.executable,
            OUT_DIR=str(folder / "out"),
            BERT_BASE_DIR=str(runs.model),
            DEVICES="2",
            BookCorpus_DIR=str(folder / "corpus"),
            DEVICE_IPS="10.0.0.1,10.0.0.2",
            HCCL_CONNECT_TIMEOUT="300",
        ),
        timeout=300,
    )
    logs = [
        (folder / "out" / "logs" / (f"device_{rank}.log")).read_text()
        for rank in (0, 1)
    ]
    np.testing.assert_allclose(
        tiny.losses_of(logs[0]),
        tiny.losses_of(runs.output("cpu")),
        rtol=0,
        atol=1e-5,
    )
    assert (
        "global_batch=8 train_batch_size=4 num_accumulation_steps=1 devices=2"
    ) in logs[0]
    # The other rank neither logs its steps nor saves.
    assert not tiny.steps_of(logs[1])
    assert "Saving checkpoints" not in logs[1]
    assert {path.name for path in (folder / "out").glob("*.index")} == {
        "model.ckpt-0.index",
        "model.ckpt-20.index",
    }


# --- The predecessor's command lines ----------------------------------------


@pytest.fixture(scope="module")
def old(runs):
    """The directories that the predecessor's command lines name."""
    folder = runs.folder / "old"
    base = tiny.write_model(
        folder / "base", dropout=0.1, layers=1, hidden_size=8
    )
    (folder / "corpus").mkdir()
    (folder / "corpus" / "test_bookscorpus.txt").write_text(
        "".join(
            f"The river {n} runs past the town of number {n * 7}.\n"
            + "\n" * (n % 5 == 0)
            for n in range(400)
        )
    )
    squad = folder / "squad"
    squad.mkdir()
    for version in ("v1.1", "v2.0"):
        for part in ("train", "dev"):
            tiny.write_squad(
                squad / (f"{part}-{version}.json"), version_2=version == "v2.0"
            )
    tiny.run(
        tiny.command(
            "run_pretraining.py",
            [],
            **dict(
                SIZES,
                bert_config_file=base / "config.json",
                do_train=True,
                input_files_dir=runs.records,
                output_dir=folder / "large",
                num_train_steps=3,
            ),
        ),
        tiny.environment(npu=False),
    )
    (base / "tf_model").mkdir()
    for path in (folder / "large").glob("model.ckpt-3.*"):
        path.rename(
            base
            / "tf_model"
            / path.name.replace("model.ckpt-3", "roberta_large.ckpt")
        )
    return folder


CREATE = """create_pretraining_data.py
--input_file=$BookCorpus_DIR/test_bookscorpus.txt
--output_file=$BookCorpus_DIR/pretrain_data
--vocab_file=$BERT_BASE_DIR/vocab.json
--merges_file=$BERT_BASE_DIR/merges.txt --do_lower_case=True
--max_seq_length=128 --max_predictions_per_seq=20 --masked_lm_prob=0.15
--random_seed=12345 --dupe_factor=5"""
PRETRAIN = """run_pretraining.py --bert_config_file=$BERT_BASE_DIR/config.json
--max_seq_length=128 --max_predictions_per_seq=20 --train_batch_size=32
--learning_rate=2e-5 --num_warmup_steps=100 --num_train_steps=100000
--optimizer_type=adam --manual_fp16=True --use_fp16_cls=True
--input_files_dir=$BookCorpus_DIR/pretrain_data
--eval_files_dir=$BookCorpus_DIR/eval_data --npu_bert_debug=False
--npu_bert_use_tdt=True --do_train=True --num_accumulation_steps=1
--npu_bert_job_start_file= --iterations_per_loop=100
--save_checkpoints_steps=10000 --npu_bert_clip_by_global_norm=False
--distributed=False --npu_bert_loss_scale=0 --output_dir=$OUT_DIR
--out_log_dir=$OUT_DIR/loss"""
SQUAD = """run_squad.py --vocab_file=$BERT_BASE_DIR/vocab.json
--merges_file=$BERT_BASE_DIR/merges.txt
--bert_config_file=$BERT_BASE_DIR/config.json
--init_checkpoint=$BERT_BASE_DIR/tf_model/roberta_large.ckpt --do_train=True
--train_file=$SQUAD_DIR/train-%s.json --do_predict=True
--predict_file=$SQUAD_DIR/dev-%s.json --train_batch_size=4
--predict_batch_size=32 --learning_rate=3e-5 --num_train_epochs=2.0
--max_seq_length=512 --doc_stride=128 --output_dir=$OUT_DIR
--version_2_with_negative=%s"""
EVALUATE = {
    "v1.1": "evaluate-v1.1.py $SQUAD_DIR/dev-v1.1.json "
    "$OUT_DIR/predictions.json",
    "v2.0": "evaluate-v2.0.py $SQUAD_DIR/dev-v2.0.json "
    "$OUT_DIR/predictions.json --na-prob-file "
    "$OUT_DIR/null_odds.json",
}


def run_old(old, out, text, *more, folder="", exports=True, **variables):
    """Runs a command line of old, its shell variables filled in."""
    places = {
        "BookCorpus_DIR": old / "corpus",
        "BERT_BASE_DIR": old / "base",
        "SQUAD_DIR": old / "squad",
        "OUT_DIR": old / out,
    }
    words = [
        re.sub(r"\$(\w+)", lambda m: str(places[m.group(1)]), word)
        for word in text.split()
    ]
    if exports:
        variables.update(JOB_ID="10086", ASCEND_DEVICE_ID="0")
    return tiny.run(
        [sys.executable, REPOSITORY / folder / words[0]]
        + words[1:]
        + list(more),
        tiny.environment(**variables),
    )


@pytest.mark.parametrize(
    "variables",
    [{}, {"RANK_SIZE": "1"}],
    ids=["RANK_SIZE unset", "RANK_SIZE=1"],
)
def test_old_pretraining_runs_unchanged(old, variables):
    if not (old / "corpus" / "pretrain_data").exists():
        run_old(old, "", CREATE, exports=False)
    out = f"pretraining_{len(variables)}"
    # Its 100,000 steps are cut, and all else is as it was.
    output = run_old(
        old,
        out,
        PRETRAIN,
        "--num_train_steps=4",
        "--num_warmup_steps=2",
        **variables,
    )
    assert "device=npu" in output
    lines = tiny.steps_of(output)
    assert [line["step"] for line in lines] == [4]
    assert lines[-1]["loss_scale"] == 2**15
    assert (old / out / "model.ckpt-4.index").exists()
    assert list((old / out / "loss").glob("events*"))


@pytest.mark.parametrize(
    "version, variables", [("v1.1", {"RANK_SIZE": "1"}), ("v2.0", {})]
)
def test_old_squad_runs_unchanged(old, version, variables):
    out = f"squad_{version}_{len(variables)}"
    output = run_old(
        old, out, SQUAD % (version, version, version == "v2.0"), **variables
    )
    assert "device=npu" in output
    scores = json.loads(run_old(old, out, EVALUATE[version], folder="scripts"))
    assert {"v1.1": "exact_match", "v2.0": "best_f1"}[version] in scores


# --- Errors -----------------------------------------------------------------


@pytest.mark.parametrize(
    "npu, flags, variables, wanted",
    [
        (
            False,
            ["--accelerator=npu"],
            {},
            f"--accelerator=npu: the {ADAPTER} package does not import; "
            "install CANN and its TensorFlow adapter",
        ),
        (
            True,
            ["--distributed=True"],
            {"RANK_SIZE": "8", "RANK_ID": "0"},
            "RANK_SIZE is 8, but RANK_TABLE_FILE is not set; write one with "
            "scripts/make_rank_table.py",
        ),
        (True, ["--horovod=True"], {}, "--horovod is for CPUs and GPUs"),
    ],
    ids=["no adapter", "no rank table", "Horovod on an NPU"],
)
def test_what_is_missing_is_said_in_one_line(
    runs, npu, flags, variables, wanted
):
    output = tiny.run(
        runs.pretraining("refused") + flags,
        tiny.environment(npu=npu, **variables),
        code=1,
    )
    last = output.splitlines()[-1]
    assert last.startswith("run_pretraining.py: error: " + wanted)
    assert "Traceback" not in output
    assert not (runs.folder / "refused").exists()


def test_horovod_that_is_missing_is_said_in_one_line(runs, tmp_path):
    (tmp_path / "horovod").mkdir()
    (tmp_path / "horovod" / "__init__.py").write_text(
        "raise ImportError('no module named horovod')\n"
    )
    line = runs.pretraining("refused", horovod=True, accelerator="cpu")
    output = tiny.run(
        line, tiny.environment(npu=False, PYTHONPATH=str(tmp_path)), code=1
    )
    assert re.search(
        r"error: --horovod: Horovod does not import .*"
        r"scripts/setup.sh --horovod",
        output.splitlines()[-1],
    )
    assert "Traceback" not in output


def test_npu_bridge_is_named_in_one_module():
    found = subprocess.run(
        "grep -lE 'npu_(bridge|device)' *.py",
        shell=True,
        cwd=str(REPOSITORY),
        stdout=subprocess.PIPE,
        text=True,
    ).stdout.split()
    assert found == ["npu_environment.py"]
