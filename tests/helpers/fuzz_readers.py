# SPDX-License-Identifier: Apache-2.0
"""The readers that tests/fuzz.py feeds, each with its sound files.

A function of a directory gives a Reader. `make(random)` is the bytes of a
damaged file; where a checksum would keep damage from the code behind it, the
damage is done first and the checksum made to fit. `read(data)` takes the file
as a script would, to its last byte.
"""

import argparse
import contextlib
import dataclasses
import functools
import gzip
import io
import json
import struct
import zipfile

import numpy as np
from absl import flags
from absl.testing import flagsaver

import configuration
import predict
import squad
import tokenization
from common import command_line, errors, tfrecord
from helpers import (
    fairseq_files,
    fuzz_task_readers,
    mutations,
    single_records,
    tf_index,
    torch_writer,
)
from helpers.fuzz_base import Reader, of_bytes, of_json, zipped
from pretraining_data import corpus, manifest, records, shard_output
from question_answering import squad_scores
from training import checkpoints, masked_lm_batches, preflight, rollback
from weights import (
    conversion,
    lazy_tensors,
    model_directory,
    safetensors_file,
    tf_checkpoint,
    torch_file,
)
from weights import names as weight_names

CONFIG = {
    "model_type": "roberta",
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 12,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "initializer_range": 0.02,
    "architectures": ["RobertaForMaskedLM"],
    "id2label": {"0": "no", "1": "yes"},
    "torch_dtype": "float32",
}


def _members(path):
    with zipfile.ZipFile(str(path)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


# --- Records ----------------------------------------------------------------

DYNAMIC = {"input_ids": np.array([0, 9, 300, 70000, 2])}
STATIC = {
    "input_ids": np.arange(8),
    "input_mask": np.ones(8, np.int64),
    "segment_ids": np.zeros(8, np.int64),
    "masked_lm_ids": np.array([5, 7, 0]),
    "masked_lm_positions": np.array([1, 3, 0]),
    "masked_lm_weights": np.array([1, 1, 0], np.float32),
}
_LENGTHS = {"input_ids": (1, 8)}
_STATIC_LENGTHS = dict(
    {name: (8, 8) for name in ("input_ids", "input_mask", "segment_ids")},
    **{name: (3, 3) for name in STATIC if name.startswith("masked")},
)


def _read_records(path, data):
    path.write_bytes(data)
    for skips in (True, False):
        opened = records.ShardedRecords([str(path)], skip_corrupt=skips)
        indices = range(min(len(opened), 50))
        opened.read(indices)
        for lengths in (None, _LENGTHS, _STATIC_LENGTHS):
            with contextlib.suppress(errors.UserError):
                opened.read_examples(indices, lengths, 90000)
    manifest.summarize_file(str(path))


def record_files(directory):
    frames = [
        tfrecord.frame(single_records.encode_example(features))
        for features in (DYNAMIC, STATIC)
    ]
    return of_bytes(
        [frames[0] * 5, b"".join(frames), frames[0]],
        functools.partial(_read_records, directory / "a.tfrecord"),
        tokens=frames + [frames[0][:12], b"\x1f\x8b"],
    )


def examples(directory):
    """What lies behind the checksums of a record."""
    sound = [
        single_records.encode_example(DYNAMIC),
        single_records.encode_example(STATIC),
    ]
    tokens = [
        b"\n",
        b"\x12",
        b"\x1a",
        b"\x22",
        b"\xff" * 9 + b"\x01",
        b"\xff" * 20,
        b"\x80" * 9,
        b"input_ids",
        b"\r\x00\x00\x80\x7f",
    ]

    def make(random):
        return b"".join(
            tfrecord.frame(
                mutations.of_bytes(random.choice(sound), random, tokens)[
                    : 1 << 20
                ]
            )
            for _ in range(2)
        )

    return Reader(
        [b"".join(map(tfrecord.frame, sound))],
        make,
        functools.partial(_read_records, directory / "a.tfrecord"),
    )


def _write_shard(directory):
    path = directory / "a.tfrecord"
    with tfrecord.RecordWriter(str(path)) as writer:
        for _ in range(4):
            writer.write(
                single_records.encode_example(
                    {"input_ids": np.array([0, 9, 7, 5, 2])}
                )
            )
    return manifest.summarize_file(str(path))


SETTINGS = {
    "masking": "dynamic",
    "packing": "full_sentences",
    "max_seq_length": 8,
    "max_predictions_per_seq": 2,
    "vocab_size": 20,
    "bos_id": 0,
    "pad_id": 1,
    "eos_id": 2,
    "unk_id": 3,
    "mask_id": 19,
    "masked_lm_prob": 0.15,
    "do_whole_word_mask": True,
    "random_seed": 1,
    "word_starts": manifest.encode_word_starts(np.arange(20) % 3 == 0),
}


def manifests(directory):
    content = dict(
        SETTINGS,
        shards=[_write_shard(directory)],
        format_version=manifest.FORMAT_VERSION,
    )

    def read(data):
        (directory / "manifest.json").write_bytes(data)
        source = masked_lm_batches.MaskedLmSource(
            str(directory),
            masked_lm_batches.Settings(
                max_seq_length=8,
                max_predictions=2,
                vocab_size=20,
                pad_token_id=1,
            ),
        )
        source.masked(np.arange(len(source)), np.zeros(4, np.int64), 1)
        preflight.check_shards(str(directory))

    return of_json([content], read)


def unfinished_builds(directory):
    """progress.json, from which a build resumes."""
    shard = dict(
        _write_shard(directory),
        name="pretrain-00000-of-00002.tfrecord",
        documents=1,
        tokens=9,
        sequences=4,
        replaced_lines=0,
        skipped_lines=0,
    )
    (directory / "a.tfrecord").rename(directory / shard["name"])
    sound = (directory / shard["name"]).read_bytes()
    path = directory / "progress.json"
    source = {"input": "x", "invalid_text": "error"}
    build = dict(
        SETTINGS, num_shards=2, format_version=manifest.FORMAT_VERSION, **source
    )

    def read(data):
        path.write_bytes(data)
        (directory / shard["name"]).write_bytes(sound)
        output = shard_output.ShardedOutput(
            str(directory), 2, SETTINGS, source, {}
        )
        output.begin(overwrite=False)
        for number in shard_output.unfinished_shards(output):
            output.finish(
                dict(shard, name=f"pretrain-0000{number}-of-00002.tfrecord")
            )
        output.complete()

    return of_json([{"build": build, "shards": [shard]}], read)


# --- Text -------------------------------------------------------------------


def _read_corpus(path, data):
    path.write_bytes(data)
    for limit in (64, 1 << 14):
        limits = corpus.ChunkLimits(limit)
        for group in corpus.group_files(
            corpus.text_files.expand_inputs(str(path)), limits
        ):
            for chunk in corpus.read_chunks(group, limits):
                list(corpus.sentences(chunk))


TEXT = "The river runs.\nPast a town é 中.\n\nAnother \U0001f600 text.\n" * 4
_TEXT_TOKENS = [
    b"\n",
    b"\r\n",
    b"\n\n",
    b" ",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\xff\xfe",
    b"\0",
    b"\xe2\x80\xa8",
    b'\n{"text": "a\\nb"}\n',
    b"\\ud800",
    b"{",
    b"[" * 99999,
]


def texts(directory):
    return of_bytes(
        [TEXT.encode()],
        functools.partial(_read_corpus, directory / "a.txt"),
        _TEXT_TOKENS,
    )


def json_lines(directory):
    lines = [
        json.dumps({"text": TEXT, "id": number}).encode() for number in range(3)
    ]

    def make(random):
        if random.randrange(2):
            return mutations.of_bytes(b"\n".join(lines), random, _TEXT_TOKENS)
        return b"\n".join([lines[0], mutations.of_json(lines[1], random)])

    return Reader(
        [b"\n".join(lines)],
        make,
        functools.partial(_read_corpus, directory / "a.jsonl"),
    )


def gzip_texts(directory):
    sound = _gzip(TEXT.encode())
    return of_bytes(
        [sound, sound * 2],
        functools.partial(_read_corpus, directory / "a.txt.gz"),
        [sound, _gzip(b"a b\n" * (1 << 15)), b"\0" * 9],
    )


def _gzip(data):
    result = io.BytesIO()
    with gzip.GzipFile(fileobj=result, mode="wb", mtime=0) as stream:
        stream.write(data)
    return result.getvalue()


# --- Vocabulary and configs -------------------------------------------------

_WORDS = ("Ġ t", "Ġt h", "Ġth e", "a n", "Ġ a", "Ġa n")


def _vocabulary():
    tokens = (
        ["<s>", "<pad>", "</s>", "<unk>"]
        + tokenization.byte_symbols()
        + [pair.replace(" ", "") for pair in _WORDS]
        + ["<mask>"]
    )
    return {token: number for number, token in enumerate(tokens)}


def _read_tokenizer(directory, name, data):
    (directory / name).write_bytes(data)
    tokenizer = tokenization.RobertaTokenizer(
        str(directory / "vocab.json"), str(directory / "merges.txt")
    )
    text = "The tan\nthe \u00e9\U0001f600"
    ids, offsets = tokenizer.encode_with_offsets(text)
    if tokenizer.decode(ids) != text or len(offsets) != len(ids):
        raise AssertionError("the text does not come back")
    tokenizer.word_start_table()


def vocabularies(directory):
    (directory / "merges.txt").write_text("\n".join(_WORDS), "utf-8")
    return of_json(
        [_vocabulary()],
        functools.partial(_read_tokenizer, directory, "vocab.json"),
    )


def merges(directory):
    (directory / "vocab.json").write_text(json.dumps(_vocabulary()), "utf-8")
    return of_bytes(
        [("#version: 0.2\n" + "\n".join(_WORDS) + "\n").encode()],
        functools.partial(_read_tokenizer, directory, "merges.txt"),
        [
            "Ġ".encode(),
            b" ",
            b"\n",
            b"\r\n",
            b"#version",
            b"t h",
            b"\xef\xbb\xbf",
            b"\xff",
        ],
    )


def configs(directory):
    path = directory / "config.json"

    def read(data):
        path.write_bytes(data)
        config = configuration.RobertaConfig.from_json_file(str(path))
        json.dumps(config.to_dict(), allow_nan=False)
        model_directory.check_length(8, config, str(path))

    return of_json([CONFIG], read)


@dataclasses.dataclass(frozen=True)
class _Flags:
    """One flag of each type."""

    fuzzed_number: int = command_line.flag(1, "A number.", lower=0)
    fuzzed_share: float = command_line.flag(0.5, "A share.", upper=1)
    fuzzed_text: str = command_line.flag("", "A text.")
    fuzzed_choice: str = command_line.flag("a", "One.", choices=("a", "b"))
    fuzzed_switch: bool = command_line.flag(False, "A switch.")


@functools.lru_cache(maxsize=None)
def _define_flags():
    command_line.define(_Flags)


def flag_files(directory):
    _define_flags()
    path = directory / "run.flags"
    sound = (
        b"# A run\n--fuzzed_number=3\n--fuzzed_share=0.25\n"
        b"--fuzzed_text=a b\n--fuzzed_choice=b\n--fuzzed_switch\n"
    )

    def read(data):
        path.write_bytes(data)
        log = io.StringIO()
        try:
            with contextlib.redirect_stderr(log):
                command_line._parse(["fuzz", f"--flagfile={path}"])
        except SystemExit:
            raise errors.UserError(log.getvalue()) from None
        command_line.build(_Flags, flags.FLAGS)

    return of_bytes(
        [sound],
        flagsaver.flagsaver(read),
        [
            b"--flagfile=%s\n" % bytes(path),
            b"--fuzzed_number=",
            b"nan",
            b"1e999",
            b"--",
            b"=",
            b"\n",
            b"--no",
            b"'",
            b"#",
            b"//",
            b"9" * 5000,
            b"\xff",
            b"--help\n",
            b"--undefok=x\n",
            b"--flagfile=/\n",
            b"--flagfile=\n",
        ],
    )


# --- SQuAD ------------------------------------------------------------------


def _squad(version_2):
    answer = {"text": "Town 1", "answer_start": 0}
    question = {"id": "q1", "question": "Where?", "answers": [answer]}
    other = {
        "id": "q2",
        "question": "Who é?",
        "answers": [{"text": "river", "answer_start": 15}],
    }
    if version_2:
        question["is_impossible"] = False
        other.update(is_impossible=True, answers=[], plausible_answers=[answer])
    return {
        "version": "1.1",
        "data": [
            {
                "title": "t",
                "paragraphs": [
                    {
                        "context": "Town 1 lies on river \U0001f600 Ab.",
                        "qas": [question, other],
                    }
                ],
            }
        ],
    }


def questions(directory):
    (directory / "vocab.json").write_text(json.dumps(_vocabulary()), "utf-8")
    (directory / "merges.txt").write_text("\n".join(_WORDS), "utf-8")
    tokenizer = tokenization.RobertaTokenizer(
        str(directory / "vocab.json"), str(directory / "merges.txt")
    )
    path = directory / "squad.json"

    def read(data):
        path.write_bytes(data)
        for is_training, version_2, skips in (
            (True, False, False),
            (True, True, True),
            (False, True, False),
        ):
            with contextlib.suppress(errors.UserError):
                found = squad.read_examples(
                    str(path), is_training, version_2, skips
                )
                list(
                    squad.convert_examples_to_features(
                        found[:4], tokenizer, 40, 8, 16, is_training
                    )
                )
        squad_scores.gold_answers(
            str(path), squad_scores.read_dataset(str(path))
        )

    return of_json([_squad(False), _squad(True)], read)


def predictions(directory):
    path = directory / "predictions.json"
    gold = [("q1", ["Town 1", "a town"]), ("q2", ["river"])]

    def read(data):
        path.write_bytes(data)
        found = squad_scores.read_predictions(str(path))
        squad_scores.mean_scores_v1(gold, found)
        squad_scores.scores(dict(gold), found)

    return of_json([{"q1": "the Town 1", "q2": ""}], read)


def null_odds(directory):
    path = directory / "null_odds.json"
    gold, answers = {"q1": ["Town 1"], "q2": []}, {"q1": "Town 1", "q2": "x"}

    def read(data):
        path.write_bytes(data)
        found = squad_scores.read_null_odds(str(path))
        if set(gold) <= set(found):
            squad_scores.find_best_thresholds(gold, answers, found)

    return of_json([{"q1": 0.5, "q2": -3.25}], read)


def prediction_inputs(directory):
    """What predict.py takes: JSON lines."""
    path = directory / "inputs.jsonl"
    line = {
        "id": "1",
        "text": "a <mask>",
        "text_b": "b",
        "question": "Who?",
        "context": "Ab.",
    }

    def read(data):
        path.write_bytes(data)
        for task in ("answer", "fill-mask", "classify", "embed"):
            with contextlib.suppress(errors.UserError):
                predict.read_items(
                    task, str(path), False, predict.PredictConfig()
                )
        predict.read_items(
            "classify", str(path), False, predict.PredictConfig()
        )

    return of_json([line], read)


# --- Checkpoints ------------------------------------------------------------


def _arrays():
    random = np.random.RandomState(3)
    config = configuration.RobertaConfig.from_dict(CONFIG)
    return {
        variable.hf: random.rand(*variable.shape).astype(np.float32)
        for variable in weight_names.variables(
            {weight_names.BASE, "masked_lm"}, config
        )
    }


def _write_model(directory):
    """A Hugging Face model of 20 tokens; its directory."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    with open(str(directory / "model.safetensors"), "wb") as stream:
        safetensors_file.write(
            stream,
            {
                name: lazy_tensors.Tensor(
                    "F32", array.shape, lambda array=array: array, name
                )
                for name, array in _arrays().items()
            },
        )
    return directory


def _convert(source, target, given, output, **options):
    conversion.convert(
        source,
        target,
        conversion.ConvertConfig(
            input=str(given), output=str(output), overwrite=True, **options
        ),
        lambda line: None,
    )


def _read_all(tensors):
    for tensor in tensors.values():
        if tensor.dtype != "STRING":
            np.asarray(tensor.read()).sum()


def hf_configs(directory):
    model = _write_model(directory / "hf")

    def read(data):
        (model / "config.json").write_bytes(data)
        _convert("hf", "tf", model, directory / "tf" / "m")

    return of_json([CONFIG], read)


def hf_indexes(directory):
    model = _write_model(directory / "hf")
    part = "model-00001-of-00001.safetensors"
    (model / "model.safetensors").rename(model / part)

    def read(data):
        (model / "model.safetensors.index.json").write_bytes(data)
        _convert("hf", "hf", model, directory / "out")

    return of_json(
        [
            {
                "metadata": {"total_size": 1},
                "weight_map": {name: part for name in _arrays()},
            }
        ],
        read,
    )


def safetensors(directory):
    model = _write_model(directory / "hf")
    path = model / "model.safetensors"
    sound = path.read_bytes()
    (size,) = struct.unpack_from("<Q", sound)
    header, data = sound[8 : 8 + size], sound[8 + size :]

    def make(random):
        if random.randrange(4) == 0:
            return mutations.of_bytes(sound, random)
        text = mutations.of_json(header, random)
        return struct.pack("<Q", len(text)) + text + data

    def read(data):
        path.write_bytes(data)
        _read_all(safetensors_file.load(str(path)))
        _convert("hf", "tf", model, directory / "tf" / "m")

    return Reader([sound], make, read)


_OPCODES = [
    bytes([code])
    for code in b"(.012FNQRWVX]}abdeghijlopqrstu)\x80"
    b"\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x90\x93\x94"
    b"\x95\x96"
] + [
    b"cos\nsystem\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n)R",
    b"X\xff\xff\xff\x7f",
    b"B\xff\xff\xff\xff",
    b"\x8d" + b"\xff" * 8,
    b"r\xff\xff\xff\xff",
    b"\x8b\xff\xff\xff\x7f",
    b"J\xff\xff\xff\xff",
    b"(" * 5000,
    b"]" * 5000,
    b"q\x01h\x01" * 5000,
    b"\x85" * 5000,
    b"2\x86" * 40,
    b"\x8a\xff" + b"\x7f" * 255,
    b"\x8b\xd0\x07\x00\x00" + b"\x7f" * 2000,
]


def _read_torch(path, data):
    path.write_bytes(data)
    saved = torch_file.load(str(path))
    torch_file.attributes(saved)
    if isinstance(saved, dict) and isinstance(saved.get("model"), dict):
        _read_all(
            {
                name: value
                for name, value in saved["model"].items()
                if isinstance(value, lazy_tensors.Tensor)
            }
        )


def _state():
    return {
        "model": {
            "w": np.arange(12, dtype=np.float32).reshape(3, 4),
            "h": np.float16([1, 2]),
        },
        "args": argparse.Namespace(layers=2, rate=0.5),
        "list": [1, -2, None, True, "ä"],
    }


def torch_zips(directory):
    path = directory / "model.pt"
    torch_writer.save(path, _state())
    sound, members = path.read_bytes(), _members(path)

    def make(random):
        if random.randrange(3) == 0:
            return mutations.of_bytes(
                sound, random, [b"PK\x03\x04", b"PK\x05\x06"]
            )
        changed = dict(members)
        name = random.choice(sorted(members) + ["archive/data.pkl"] * 8)
        changed[name] = mutations.of_bytes(members[name], random, _OPCODES)
        return zipped(
            changed,
            random.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,)),
            {name: changed[name]} if random.randrange(8) == 0 else {},
        )

    return Reader([sound], make, functools.partial(_read_torch, path))


def torch_chains(directory):
    path = directory / "model.pt"
    torch_writer.save_legacy(path, _state())
    return of_bytes(
        [path.read_bytes()], functools.partial(_read_torch, path), _OPCODES
    )


def tf_indexes(directory):
    model = _write_model(directory / "hf")
    prefix = directory / "tf" / "m"
    _convert("hf", "tf", model, prefix)
    path = directory / "tf" / "m.index"
    sound = path.read_bytes()
    pairs = tf_checkpoint._read_table(sound)
    tokens = [
        b"\xff" * 9 + b"\x01",
        b"\x12\x80\x80\x80\x80\x08",
        b"\x08\x07",
        b"\x3a\x00",
        b"\x10\x01",
    ]

    def make(random):
        if random.randrange(4) == 0:
            return mutations.of_bytes(sound, random)
        changed = list(pairs)
        for _ in range(random.choice((1, 3))):
            place = random.randrange(len(changed))
            key, value = changed[place]
            if random.randrange(4):
                value = mutations.of_bytes(value, random, tokens)
            else:
                key = mutations.of_bytes(key, random)[: 1 << 12]
            changed[place] = key, value[: 1 << 14]
        return tf_index.table(
            [sorted(changed) if random.randrange(4) else changed]
        )

    def read(data):
        path.write_bytes(data)
        checkpoints.damage(str(prefix))
        _read_all(tf_checkpoint.load(str(prefix)))
        _convert("tf", "hf", prefix, directory / "out")

    return Reader([sound], make, read)


def tf_data(directory):
    prefix = directory / "tf" / "m"
    _convert("hf", "tf", _write_model(directory / "hf"), prefix)
    path = directory / "tf" / "m.data-00000-of-00001"

    def read(data):
        path.write_bytes(data)
        _convert("tf", "hf", prefix, directory / "out")

    return of_bytes([path.read_bytes()], read)


def checkpoint_lists(directory):
    """The file `checkpoint`, by which TensorFlow knows the newest one."""
    _convert(
        "hf",
        "tf",
        _write_model(directory / "hf"),
        directory / "tf" / "model.ckpt-1",
    )
    path = directory / "tf" / "checkpoint"
    line = b'model_checkpoint_path: "model.ckpt-1"\n'
    return of_bytes(
        [line + b"all_" + line.replace(b"path", b"paths")],
        lambda data: (
            path.write_bytes(data),
            checkpoints.repair(str(path.parent)),
        ),
        [b'"', b"\n", b"\\377", b"../", b"\xff", b": ", b"{", b"[", line],
    )


def fairseq_dictionaries(directory):
    model = fairseq_files.write(directory / "fairseq")
    sound = (model / "dict.txt").read_bytes()

    def read(data):
        (model / "dict.txt").write_bytes(data)
        _read_fairseq(directory)

    return of_bytes(
        [sound],
        read,
        [
            b"\n",
            b" ",
            b" 1\n",
            b"<mask> 1\n",
            b"madeupword0001 0\n",
            b"\xff",
            b" #fairseq:overwrite",
            b"9" * 30,
        ],
    )


def fairseq_encoders(directory):
    model = fairseq_files.write(directory / "fairseq")
    (model / "merges.txt").unlink()
    numbers = {
        token: number for number, token in enumerate(fairseq_files.TEXTS)
    }

    def read(data):
        (model / "encoder.json").write_bytes(data)
        _read_fairseq(directory)

    return of_json([numbers], read)


def fairseq_models(directory):
    model = fairseq_files.write(directory / "fairseq")
    members = _members(model / "model.pt")

    def make(random):
        changed = dict(members)
        changed["archive/data.pkl"] = mutations.of_bytes(
            members["archive/data.pkl"], random, _OPCODES
        )
        return zipped(changed)

    def read(data):
        (model / "model.pt").write_bytes(data)
        _read_fairseq(directory)

    return Reader([zipped(members)], make, read)


def _read_fairseq(directory):
    options = conversion.ConvertConfig(
        input=str(directory / "fairseq"), output=str(directory / "out")
    )
    model = conversion._read_fairseq(options)
    conversion.check(conversion.without_copies(model))
    _read_all(model.tensors)


def rollbacks(directory):
    path = directory / "rollbacks.json"

    def read(data):
        path.write_bytes(data)
        rollback.resume(str(directory), 40)

    return of_json([{"rollbacks": 2, "skipped": [[40, 47], [100, 120]]}], read)


READERS = {
    function.__name__: function
    for function in (
        record_files,
        examples,
        manifests,
        unfinished_builds,
        texts,
        json_lines,
        gzip_texts,
        vocabularies,
        merges,
        configs,
        flag_files,
        questions,
        predictions,
        null_odds,
        prediction_inputs,
        hf_configs,
        hf_indexes,
        safetensors,
        torch_zips,
        torch_chains,
        tf_indexes,
        tf_data,
        checkpoint_lists,
        fairseq_dictionaries,
        fairseq_encoders,
        fairseq_models,
        rollbacks,
        *fuzz_task_readers.READERS,
    )
}
