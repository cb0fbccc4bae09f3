# SPDX-License-Identifier: Apache-2.0
"""The checks before the first step, and scripts/doctor.py, which makes all."""

import json
import logging
import types

import numpy as np
import pytest

import configuration
from common import errors, files, tfrecord, version
from helpers import single_records, tiny
from pretraining_data import manifest as manifests
from scripts import doctor as doctor_script
from training import masked_lm_batches, preflight
from weights import model_directory


def config(**changes):
    values = dict(
        vocab_size=tiny.VOCAB_SIZE,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    )
    values.update(changes)
    return configuration.RobertaConfig(**values)


def test_512_tokens_need_514_positions():
    assert "512 tokens of 512" in model_directory.check_length(
        512, config(), "c"
    )
    with pytest.raises(
        errors.UserError,
        match=(
            r"--max_seq_length is 512, but c.json has positions for 510 "
            r"\(max_position_embeddings 512 less pad_token_id 1 and 1; 512 "
            r"tokens need 514\); use 510 or less"
        ),
    ):
        model_directory.check_length(
            512, config(max_position_embeddings=512), "c.json"
        )


def test_the_vocabulary_must_be_the_models(tmp_path):
    model = tiny.write_model(tmp_path, layers=2)
    vocab_file = str(model / "vocab.json")
    for rows in (261, 264, 384):  # padded to a multiple of 8 or 128
        ids = model_directory.check_vocabulary(
            vocab_file, config(vocab_size=rows), "c"
        )
        assert len(ids) == 261
    for rows in (260, 262, 392, 50265):
        with pytest.raises(
            errors.UserError,
            match="vocab.json has 261 entries, but c has "
            f"vocab_size {rows}; use the vocabulary of that model",
        ):
            model_directory.check_vocabulary(
                vocab_file, config(vocab_size=rows), "c"
            )
    with pytest.raises(
        errors.UserError, match="<pad> at 1, but c has pad_token_id 0"
    ):
        model_directory.check_vocabulary(
            vocab_file, config(pad_token_id=0), "c"
        )


# Records.


def write_records(folder, count=20, largest=200):
    """Dynamic records with a manifest; the last one has the largest id."""
    folder.mkdir()
    random = np.random.RandomState(1)
    path = str(folder / "a.tfrecord")
    with tfrecord.RecordWriter(path) as writer:
        for number in range(count):
            ids = random.randint(4, 100, 12)
            ids[5] = largest if number == count - 1 else 4
            writer.write(
                single_records.encode_example(
                    {"input_ids": np.concatenate([[0], ids, [2]])}
                )
            )
    model = tiny.write_model(folder.parent / "model", layers=2)
    single_records.write_manifest(
        str(folder),
        {
            "masking": "dynamic",
            "max_seq_length": tiny.LENGTH,
            "max_predictions_per_seq": tiny.PREDICTIONS,
            "vocab_size": tiny.VOCAB_SIZE,
            "bos_id": 0,
            "pad_id": 1,
            "eos_id": 2,
            "unk_id": 3,
            "mask_id": 260,
            "vocab_sha256": files.sha256(str(model / "vocab.json")),
            "merges_sha256": files.sha256(str(model / "merges.txt")),
            "shards": [manifests.summarize_file(path)],
        },
    )
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_records(tmp_path / "records")


def change_last_record(folder):
    with open(str(folder / "a.tfrecord"), "r+b") as stream:
        stream.seek(-8, 2)
        stream.write(b"\xff")


def source(folder, vocab_size=tiny.VOCAB_SIZE):
    return masked_lm_batches.MaskedLmSource(
        str(folder),
        masked_lm_batches.Settings(
            tiny.LENGTH, tiny.PREDICTIONS, vocab_size, pad_token_id=1
        ),
    )


def test_shards_that_are_whole_pass(folder):
    assert preflight.check_shards(str(folder)) == (
        "1 files, 20 records, checksums match"
    )
    assert preflight.check_records(source(folder)) == (
        "20 of 20 dynamic records read"
    )
    assert preflight.check_records(source(folder), 7) == (
        "7 of 20 dynamic records read"
    )


def test_a_changed_byte_is_found(folder):
    change_last_record(folder)
    with pytest.raises(
        errors.UserError,
        match="a.tfrecord has sha256 .*, but "
        "its manifest.json says .*; copy the file again",
    ):
        preflight.check_shards(str(folder))


def test_a_shard_that_grew_is_found(folder):
    path = folder / "a.tfrecord"
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(errors.UserError, match="has bytes .* says"):
        preflight.check_shards(str(folder))


def test_a_file_that_no_manifest_lists_is_found(folder):
    (folder / "b.tfrecord").write_bytes((folder / "a.tfrecord").read_bytes())
    with pytest.raises(errors.UserError, match="b.tfrecord is not listed"):
        preflight.check_shards(str(folder))


@pytest.mark.parametrize("most", [0, 2])  # the last one is always read
def test_an_id_beyond_the_vocabulary_is_found(tmp_path, most):
    folder = write_records(tmp_path / "records", largest=tiny.VOCAB_SIZE)
    with pytest.raises(errors.UserError, match="record 19 .*261"):
        preflight.check_records(source(folder), most)


def test_records_of_another_vocabulary_are_found(folder, tmp_path):
    files = [
        str(tmp_path / "model" / name) for name in ("vocab.json", "merges.txt")
    ]
    assert "built with these files" in preflight.check_vocabulary_of_records(
        str(folder), *files
    )
    with open(files[1], "a") as stream:
        stream.write("a b\n")
    with pytest.raises(
        errors.UserError,
        match="merges.txt is not the file that the records .*merges_sha256",
    ):
        preflight.check_vocabulary_of_records(str(folder), *files)


def test_without_a_manifest_there_is_nothing_to_compare(folder):
    (folder / "manifest.json").unlink()
    assert "nothing to compare" in preflight.check_shards(str(folder))
    assert "nothing to compare" in preflight.check_vocabulary_of_records(
        str(folder), "v", "m"
    )


# Disk and memory.


@pytest.mark.parametrize(
    "free, is_error, is_told",
    [
        (10e9, False, False),  # six of 1 GB, with room
        (3e9, False, True),  # two fit, not six
        (1.5e9, True, False),
    ],
)
def test_free_disk_is_held_against_checkpoints(
    monkeypatch, tmp_path, log_lines, free, is_error, is_told
):
    monkeypatch.setattr(
        preflight.shutil,
        "disk_usage",
        lambda place: types.SimpleNamespace(free=int(free)),
    )
    directory = str(tmp_path / "not" / "there" / "yet")
    if is_error:
        with pytest.raises(
            errors.UserError,
            match="1.5 GB free at .*; free 4.5 GB, or use another --output_dir",
        ):
            preflight.check_disk(directory, 10**9, 5)
    else:
        assert "a checkpoint takes 1 GB, 5 are kept" in preflight.check_disk(
            directory, 10**9, 5
        )
    assert (
        any("the disk will be full; free 3 GB" in line for line in log_lines)
        == is_told
    )


def test_a_checkpoint_holds_weights_and_two_moments():
    base = config(
        vocab_size=50265,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
    )
    # Hugging Face's RobertaForMaskedLM of that size has 124,697,433.
    assert preflight.parameters(base, "masked_lm") == 124697433
    assert preflight.checkpoint_bytes(base, "masked_lm") == 12 * 124697433


# (layers, sequences, tokens, recomputed, V) -> MiB, the peaks of training
# steps with 256 hidden units and 4 heads on a CPU.
MEASURED = {
    (6, 4, 128, False, 1000): 661,
    (6, 16, 128, False, 1000): 957,
    (6, 8, 256, False, 1000): 1002,
    (6, 8, 256, True, 1000): 817,
    (2, 4, 128, False, 50000): 704,
    (2, 16, 128, False, 50000): 866,
}


@pytest.mark.parametrize("shape", sorted(MEASURED))
def test_estimates_of_memory_are_near_what_was_measured(shape):
    layers, batch_size, length, recompute_layers, vocab_size = shape
    model = config(
        vocab_size=vocab_size,
        hidden_size=256,
        num_hidden_layers=layers,
        intermediate_size=1024,
    )
    estimate = preflight.memory_bytes(
        model,
        "masked_lm",
        batch_size=batch_size,
        max_seq_length=length,
        predictions=int(0.15 * length) + 1,
        accumulates=False,
        recompute_layers=recompute_layers,
    )
    assert abs(estimate / 2**20 / MEASURED[shape] - 1) < 0.07


def test_a_batch_that_fits_is_proposed(log_lines):
    run = types.SimpleNamespace(
        train_batch_size=32,
        num_accumulation_steps=2,
        batch_size=64,
        max_seq_length=512,
    )

    def check(available):
        del log_lines[:]
        preflight.check_memory(
            lambda size, accumulates: 10 + size + 5 * accumulates,
            available,
            run,
        )
        return "".join(log_lines)

    assert check(47) == check(None) == ""
    assert (
        "--train_batch_size=16 --num_accumulation_steps=4 has the same "
        "result in less memory" in check(40)
    )  # 10 + 16 + 5 <= 0.9 * 40
    assert "smaller model" in check(12)


@pytest.mark.parametrize(
    "available, size", [(100, 48), (40, 24), (27, 12), (16.5, 1), (15, 0)]
)
def test_proposals_divide_the_batch(available, size):
    assert (
        preflight.fitting_batch(
            lambda size, accumulates: 10 + size + 5 * accumulates, 48, available
        )
        == size
    )


# The doctor.


def doctor(place, code, **flags):
    model = place / "model"
    return tiny.run(
        tiny.command(
            "scripts/doctor.py",
            [],
            **dict(
                dict(
                    bert_config_file=model / "config.json",
                    vocab_file=model / "vocab.json",
                    merges_file=model / "merges.txt",
                    output_dir=place / "out",
                    accelerator="cpu",
                ),
                **flags,
            ),
        ),
        tiny.environment(npu=False),
        code=code,
    )


def test_the_doctor_without_flags_reports_on_the_environment():
    command = tiny.command("scripts/doctor.py", [])
    output = tiny.run(command, tiny.environment(npu=False))
    lines = [line for line in output.splitlines() if "device=" not in line]
    assert [line.partition(":")[0] for line in lines[-5:-1]] == [
        "ok     device",
        "ok     memory",
        "ok     optional packages",
        "all 3 checks passed",
    ]
    assert lines[-1].startswith("no run was checked; pass its flags")


def doctor_of_records(place, code, **flags):
    return doctor(
        place,
        code,
        **dict(
            dict(
                input_files_dir=place / "records",
                max_seq_length=tiny.LENGTH,
                max_predictions_per_seq=tiny.PREDICTIONS,
            ),
            **flags,
        ),
    )


def test_the_doctor_names_all_that_is_wrong(folder, tmp_path):
    output = doctor_of_records(tmp_path, 0)
    assert f", suite {version.VERSION}\n" in output
    assert output.splitlines()[-1] == "all 11 checks passed"
    assert "cpu, 1 of 1, Python 3." in output and "TensorFlow " in output
    assert (
        "32 in an update (32 x 1 x 1: sequences, micro-batches, devices); "
        "100000 updates read them 160,000.0 times"
    ) in output
    assert not (tmp_path / "out").exists()

    change_last_record(folder)
    path = tmp_path / "model" / "config.json"
    path.write_text(
        json.dumps(
            dict(
                json.loads(path.read_text()),
                pad_token_id=0,
                max_position_embeddings=12,
            )
        )
    )
    output = doctor_of_records(tmp_path, 1)
    assert output.splitlines()[-1] == (
        "doctor.py: error: 4 of 11 checks failed: vocabulary; training "
        "records, files; training records, ids; length; the lines above say "
        "how to fix them"
    )
    assert output.count("ERROR  ") == 4


def test_what_may_go_wrong_is_a_warning(folder, tmp_path):
    (folder / "manifest.json").unlink()
    lines = doctor_of_records(tmp_path, 0, train_batch_size=10**6).splitlines()
    assert lines[-1] == (
        "all 11 checks passed, with warnings: training records, ids; memory"
    )
    warned = [line for line in lines if line.startswith("warn   ")]
    assert len(warned) == 2
    assert "no manifest.json beside the records" in warned[0]
    assert "--num_accumulation_steps=" in warned[1]


def test_warnings_of_a_check_are_collected_instead_of_logged(caplog):
    with doctor_script.collected_warnings() as warnings:
        for logger in map(logging.getLogger, ("absl", "tensorflow")):
            logger.warning("from %s", logger.name)
            logger.debug("detail")
    logging.getLogger("absl").warning("later")
    assert warnings == ["from absl", "from tensorflow"]
    assert "from" not in caplog.text and "later" in caplog.text


def test_the_doctor_reads_questions_with_the_defaults_of_their_script(tmp_path):
    tiny.write_model(tmp_path / "model", layers=2)
    tiny.write_squad(tmp_path / "train.json")
    (tmp_path / "file").write_text('{"data": [')
    output = doctor(
        tmp_path,
        1,
        train_file=tmp_path / "train.json",
        predict_file=tmp_path / "file",
        output_dir=tmp_path / "file" / "out",
    )
    assert (
        "train.json: questions=8 features=8 truncated_questions=0 "
        "moved_answers=0 ignored_answers=0 skipped_invalid_answers=0 "
        "skipped_empty_contexts=0 answers_in_no_window=0 long_answers=0\n"
    ) in output
    assert "ok     length: 384 tokens of 512" in output
    assert "48 sequences of 384 tokens" in output
    assert f"ERROR  predict_file: {tmp_path / 'file'}: not JSON" in output
    assert (
        f"ERROR  disk: cannot use '{tmp_path / 'file'}': Not a directory"
        in output
    )
    output = doctor(
        tmp_path, 1, train_file=tmp_path / "train.json", max_seq_length=128
    )
    assert "ERROR  train_file: --doc_stride is 128" in output


@pytest.mark.parametrize(
    "parts, place, code, message",
    [
        (["masked_lm"], "model.ckpt-7", 0, "ok     checkpoint: {}"),
        # A bare encoder gives way to what was trained.
        ([], "model.ckpt-7", 0, "checkpoint: {out}"),
        (["masked_lm"], "missing", 1, "ERROR  checkpoint: --init_checkpoint"),
    ],
)
def test_the_doctor_checks_the_checkpoint_that_is_evaluated(
    folder, tmp_path, parts, place, code, message
):
    del folder
    newest = tiny.write_trained(tmp_path / "out", ["masked_lm"])
    tiny.write_trained(tmp_path / "given", parts, seed=4)
    prefix = tmp_path / "given" / place
    output = doctor_of_records(
        tmp_path,
        code,
        init_checkpoint=prefix,
        eval_files_dir=tmp_path / "records",
        do_eval=True,
    )
    assert message.format(prefix, out=newest) in output


def test_the_doctor_compares_what_the_run_began_with(folder, tmp_path):
    flags = {
        "do_train": True,
        "num_train_steps": 2,
        "num_warmup_steps": 1,
        "train_batch_size": 4,
    }
    names = ("bert_config_file", "input_files_dir", "output_dir")
    places = ("model/config.json", "records", "out")
    paths = {name: tmp_path / place for name, place in zip(names, places)}
    tiny.run(
        tiny.command(
            "run_pretraining.py",
            [],
            max_seq_length=tiny.LENGTH,
            max_predictions_per_seq=tiny.PREDICTIONS,
            **paths,
            **flags,
        ),
        tiny.environment(npu=False),
    )
    output = doctor_of_records(tmp_path, 0, **flags)
    assert "run.json: nothing differs that must stay the same" in output
    output = doctor_of_records(
        tmp_path, 1, **dict(flags, random_seed=5, optimizer_type="lamb")
    )
    assert "random_seed 12345 -> 5" in output
    data = tmp_path / "out" / "model.ckpt-0.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(bytes(content))
    output = doctor_of_records(tmp_path, 1, **flags)
    assert "ERROR  checkpoint: " in output and "model.ckpt-0" in output
    path = tmp_path / "out" / "vocab.json"
    ids = json.loads(path.read_text())
    ids["a"], ids["b"] = ids["b"], ids["a"]
    path.write_text(json.dumps(ids))
    output = doctor_of_records(tmp_path, 1, **flags)
    assert "ERROR  vocabulary: " in output and "vocab.json" in output
