# SPDX-License-Identifier: Apache-2.0
"""Models as people have them: other names, padded tables, added tokens."""

import json
import shutil

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import configuration
import tokenization
from common import errors
from helpers import (
    conversions,
    fairseq_files,
    masked_lm_records,
    tiny,
    tiny_tokenizer,
    user_errors,
)
from helpers.conversions import convert, golden, hf_arrays, hf_model, refused
from helpers.paths import GOLDEN
from inference import graphs, predictor, trained_model
from training import run_config, warm_start
from weights import model_directory

WORDS = "roberta.embeddings.word_embeddings.weight"
POSITIONS = "roberta.embeddings.position_embeddings.weight"


# --- Names ------------------------------------------------------------------


def as_saved(prefix="", tied=WORDS, old_norms=False):
    """A function of names: how another program writes them."""

    def name_of(name):
        name = tied if name == WORDS else name
        if old_norms and "norm." in name.lower():
            name = name.replace("weight", "gamma").replace("bias", "beta")
        return prefix + name

    return name_of


@pytest.mark.parametrize(
    "name_of, warnings",
    [
        (as_saved(tied="lm_head.decoder.weight"), 0),
        (as_saved("module."), 1),
        (as_saved("_orig_mod.module."), 1),
        (as_saved("model."), 1),
        (as_saved(old_norms=True), 1),
        (as_saved("module.", "lm_head.decoder.weight", True), 1),
    ],
)
def test_other_names_of_the_same_weights_are_taken(
    tmp_path, caplog, name_of, warnings
):
    values, arrays = golden("masked_lm")
    odd = {name_of(name): array for name, array in arrays.items()}
    convert("hf", "hf", hf_model(tmp_path / "a", odd, values), tmp_path / "b")
    conversions.assert_same(hf_arrays(tmp_path / "b"), arrays)
    lines = [record.getMessage() for record in caplog.records]
    assert sum("names of a wrapped model" in line for line in lines) == warnings


def test_a_name_with_and_without_its_prefix_is_refused(tmp_path):
    values, arrays = golden("masked_lm")
    arrays["module." + WORDS] = arrays[WORDS]
    given = hf_model(tmp_path / "a", arrays, values)
    assert "two of its names" in refused(
        "hf", "tf", given, tmp_path / "b" / "m"
    )


# --- Config -----------------------------------------------------------------


def test_the_pad_id_is_that_of_the_vocabulary(tmp_path, shared):
    path = shared / "cases" / "models" / "roberta-base-squad2_2020_config.json"
    old = json.loads(path.read_text())
    values, arrays = golden("question_answering")
    values = {**old, **{k: values[k] for k in values if k in SIZES}}
    given = hf_model(tmp_path / "a", arrays, values)
    message = refused("hf", "tf", given, tmp_path / "b" / "m")
    assert "pad_token_id and bos_token_id are both 0; pass --vocab" in message
    (given / "vocab.json").write_text(json.dumps({"<s>": 0, "<pad>": 1}))
    (given / "merges.txt").write_text("#version: 0.2\n")
    lines = convert("hf", "tf", given, tmp_path / "c" / "m")
    assert any(
        "pad_token_id: 0 in the config, written as 1" in x for x in lines
    )
    written = json.loads((tmp_path / "c" / "config.json").read_text())
    assert written == {
        **values,
        "pad_token_id": 1,
        "architectures": ["RobertaForQuestionAnswering"],
    }


SIZES = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
)


@pytest.mark.parametrize("value, problem", [(0, "pad_token_id 0"), (1, "")])
def test_export_refuses_a_config_of_another_vocabulary(
    tmp_path, value, problem
):
    prefix = tiny.write_trained(tmp_path, ["masked_lm"], pad_token_id=value)
    log = tiny.run(
        tiny.command(
            "export_model.py",
            [],
            model=prefix,
            format="slim",
            output=tmp_path / "slim",
        ),
        code=1 if problem else 0,
    )
    assert (tmp_path / "slim").exists() is not bool(problem)
    if problem:
        user_errors.check("export_model.py", log, [problem])


@pytest.mark.parametrize("has_epsilon", [True, False])
def test_a_config_without_epsilon_is_warned_of(caplog, has_epsilon):
    values = golden("masked_lm")[0]
    if not has_epsilon:
        del values["layer_norm_eps"]
    configuration.RobertaConfig.from_dict(values)
    lines = [record.getMessage() for record in caplog.records]
    assert ["no layer_norm_eps" in line for line in lines] == (
        [] if has_epsilon else [True]
    )


@pytest.mark.parametrize("place", ["trained/model.ckpt-7", "trained"])
def test_other_heads_and_epsilon_than_in_training_are_refused(
    tmp_path, shared, place
):
    path = shared / "cases" / "models" / "heads4.json"
    tiny.write_trained(
        tmp_path / "trained",
        ["masked_lm"],
        vocab_size=50265,
        num_attention_heads=2,
    )
    (tmp_path / "trained" / "checkpoint").unlink()  # as after a conversion
    run = run_config.RunConfig(
        bert_config_file=str(path),
        do_train=True,
        output_dir=str(tmp_path / "new"),
        init_checkpoint=str(tmp_path / place),
    )
    with pytest.raises(
        errors.UserError, match="has num_attention_heads 4, but"
    ):
        warm_start.check(
            warm_start.resolved(run),
            configuration.RobertaConfig.from_json_file(str(path)),
            ["masked_lm"],
            "cls/predictions/",
        )


# --- Google's BERT ----------------------------------------------------------

SIGNS = {
    "config": {"pooler_fc_size": 768, "directionality": "bidi"},
    "head": "cls/seq_relationship/output_weights",
    "vocabulary": "vocab.txt",
}


def google_bert(folder, sign):
    """Google's BERT whose config says RoBERTa, with one of its signs."""
    prefix = tiny.write_trained(
        folder,
        ["pooler", "masked_lm", "question_answering"],
        type_vocab_size=2,
        max_position_embeddings=512,
    )
    if sign == "config":
        values = json.loads((folder / "config.json").read_text())
        values.update(SIGNS["config"])
        (folder / "config.json").write_text(json.dumps(values))
    for name in ("vocab.json", "merges.txt"):
        shutil.move(str(folder / name), str(folder.parent / name))
    if sign == "vocabulary":
        (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    if sign == "head":
        head = {SIGNS["head"]: np.zeros([2, 32], np.float32)}
        tiny.write_values(prefix, {**tiny.values_of(prefix), **head})
    return prefix


COMMANDS = {
    "convert_checkpoint.py": {"from": "tf", "to": "hf"},
    "export_model.py": {"format": "slim"},
    "run_squad.py": {"do_train": True, "train_file": "squad.json"},
}


@pytest.mark.parametrize("sign", sorted(SIGNS))
@pytest.mark.parametrize("script", sorted(COMMANDS))
def test_googles_bert_is_refused_whatever_its_name(tmp_path, script, sign):
    prefix = google_bert(tmp_path / "bert", sign)
    tiny.write_squad(tmp_path / "squad.json")
    flags = {**COMMANDS[script], "output": tmp_path / "out", "model": prefix}
    if script == "convert_checkpoint.py":
        flags["input"] = flags.pop("model")
    if script == "run_squad.py":
        flags = {
            **COMMANDS[script],
            "output_dir": flags["output"],
            "init_checkpoint": prefix,
            "bert_config_file": tmp_path / "bert" / "config.json",
            "vocab_file": tmp_path / "vocab.json",
            "merges_file": tmp_path / "merges.txt",
            "max_seq_length": 64,
        }
    log = tiny.run(tiny.command(script, [], **flags), code=1, cwd=str(tmp_path))
    user_errors.check(script, log, ["two|2", "this is Google's BERT"])
    assert not (tmp_path / "out").exists()


def test_a_roberta_with_a_word_piece_vocabulary_is_converted(tmp_path):
    values, arrays = golden("masked_lm")
    given = hf_model(tmp_path / "a", arrays, values)
    (given / "vocab.txt").write_text("[PAD]\n")
    convert("hf", "tf", given, tmp_path / "b" / "m")


# --- Formats ----------------------------------------------------------------


def test_a_model_in_another_format_names_its_flag(tmp_path):
    fairseq = fairseq_files.write(tmp_path / "fairseq")
    convert("hf", "tf", GOLDEN / "masked_lm", tmp_path / "tf" / "m")
    out = tmp_path / "out" / "m"
    for source, given, flag in (
        ("hf", fairseq, "fairseq"),
        ("hf", fairseq / "model.pt", "fairseq"),
        ("hf", tmp_path / "tf" / "m", "tf"),
        ("fairseq", GOLDEN / "masked_lm", "hf"),
        ("tf", GOLDEN / "masked_lm", "hf"),
    ):
        assert f"pass --from={flag}" in refused(source, "hf", given, out)
    (fairseq / "dict.txt").unlink()
    (fairseq / "model.pt").rename(fairseq / "pytorch_model.bin")
    (fairseq / "config.json").write_text(json.dumps(golden("masked_lm")[0]))
    assert "pass --from=fairseq" in refused("hf", "tf", fairseq, out)


def test_a_long_integer_in_a_pickle_is_one_line(tmp_path, shared):
    given = shared / "cases" / "models" / "pickle_with_a_long_integer"
    message = refused("hf", "tf", given, tmp_path / "out" / "m")
    assert "LONG4" in message and "\n" not in message


def test_a_real_fairseq_model_gives_its_own_outputs(tmp_path, shared):
    given = shared / "cases" / "weights" / "sapiens_vh"
    convert("fairseq", "tf", given, tmp_path / "m")
    model = trained_model.find(str(tmp_path / "m"))
    with np.load(str(given / "reference.npz")) as arrays:
        reference = dict(arrays)
    tokens = reference["ids"] != 1
    for head, name, key in (
        ("encoder", "sequence_output", "hidden"),
        ("mlm", "logits", "logits"),
    ):
        graph = tf.Graph()
        with graph.as_default():
            ids = tf.constant(reference["ids"], tf.int32)
            outputs = graphs.build(model, head, ids)[name]
        with graphs.restored(model, graph) as session:
            actual = session.run(outputs)
        np.testing.assert_allclose(
            actual[tokens], reference[key][tokens], rtol=0, atol=3e-5
        )


# --- Padded tables ----------------------------------------------------------


def padded(folder, mask_id=4):
    """A model of 261 tokens and 264 rows, `<mask>` not the last of them."""
    prefix = tiny.write_trained(folder, ["masked_lm"], vocab_size=264)
    ids = json.loads((folder / "vocab.json").read_text())
    last = {i: token for token, i in ids.items()}[mask_id]
    ids[last], ids["<mask>"] = ids["<mask>"], mask_id
    (folder / "vocab.json").write_text(json.dumps(ids))
    return prefix


def test_rows_beyond_the_vocabulary_are_never_predicted(tmp_path):
    prefix = padded(tmp_path / "a")
    arrays = {n: np.array(a) for n, a in tiny.values_of(prefix).items()}
    arrays["cls/predictions/output_bias"][[261, 263]] = 100
    tiny.write_values(prefix, arrays)
    filler = predictor.Predictor(prefix, "fill-mask")
    (masks,) = filler.fill_mask("a<mask>b", top_k=300)["masks"]
    ids = [filler.tokenizer.convert_tokens_to_ids(m["token"]) for m in masks]
    assert sorted(ids) == list(range(261))
    assert sum(mask["score"] for mask in masks) == pytest.approx(1, abs=1e-5)
    convert("tf", "hf", prefix, tmp_path / "b")
    assert hf_arrays(tmp_path / "b")[WORDS].shape[0] == 264
    vocabulary = (tmp_path / "b" / "vocab.json").read_bytes()
    assert vocabulary == (tmp_path / "a" / "vocab.json").read_bytes()


@pytest.mark.parametrize("with_manifest", [True, False])
def test_masks_come_from_the_vocabulary(tmp_path, with_manifest):
    padded(tmp_path / "model")
    inputs = masked_lm_records.write_records(
        tmp_path / "records",
        40,
        manifest=with_manifest,
        vocab_size=261,
        mask_id=4,
    )
    source = masked_lm_records.source_of(
        inputs, vocab_size=264, directories=[str(tmp_path / "model")]
    )
    numbers = np.arange(40)
    drawn = set()
    for epoch in range(80):
        batch = source.masked(numbers, np.full(40, epoch), 1)
        rows, slots = np.nonzero(batch["masked_lm_weights"])
        places = batch["masked_lm_positions"][rows, slots]
        assert (batch["masked_lm_ids"] != 4).all()
        drawn.update(batch["input_ids"][rows, places].tolist())
    assert 4 in drawn and len(drawn) > 200
    assert drawn <= set(range(4, 261))


# --- Tokenizers -------------------------------------------------------------

TEXT = "lower  new<x>low <x>\u4f60 <mask>"


def model_with_tokenizer(folder, rows, added=None):
    """Golden weights with `rows` embeddings, and the tiny tokenizer."""
    values, arrays = golden("masked_lm")
    for name in (WORDS, "lm_head.bias"):
        arrays[name] = arrays[name][:rows]
    hf_model(folder, arrays, dict(values, vocab_size=rows))
    vocab_file, merges_file = tiny_tokenizer.write(folder)
    if added:
        (folder / "added_tokens.json").write_text(json.dumps(added))
    return vocab_file, merges_file


VOCABULARY = tiny_tokenizer.tiny_vocabulary()
FIRST = len(VOCABULARY)  # 286


@pytest.mark.parametrize("as_pairs", [True, False])
def test_tokenizer_json_alone_is_enough(tmp_path, as_pairs):
    given = tmp_path / "a"
    for path in model_with_tokenizer(given, FIRST + 1):
        shutil.move(path, str(tmp_path))
    specials = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    entries = {**{s: VOCABULARY[s] for s in specials}, "<x>": FIRST}
    fast = {
        "added_tokens": [{"content": t, "id": i} for t, i in entries.items()],
        "normalizer": {"type": "Lowercase"},
        "model": {
            "type": "BPE",
            "vocab": {t: i for t, i in VOCABULARY.items() if t != "<mask>"},
            "merges": [
                merge.split(" ") if as_pairs else merge
                for merge in tiny_tokenizer.MERGES
            ],
        },
    }
    (given / "tokenizer.json").write_text(json.dumps(fast))
    convert("hf", "tf", given, tmp_path / "b" / "m")
    for name in ("vocab.json", "merges.txt"):
        text = (tmp_path / "b" / name).read_text()
        expected = (tmp_path / name).read_text()
        if name == "vocab.json":
            text, expected = json.loads(text), json.loads(expected)
        assert text == expected
    added = json.loads((tmp_path / "b" / "added_tokens.json").read_text())
    assert added == {"<x>": FIRST}
    config = json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())
    assert config["do_lower_case"] is True


@pytest.mark.parametrize(
    "changes, unsupported",
    [
        ({}, ""),
        ({"normalizer": {"type": "Sequence", "normalizers": []}}, ""),
        ({"normalizer": {"type": "NFC"}}, 'normalizer {"type": "NFC"}'),
        (
            {
                "normalizer": {
                    "type": "Sequence",
                    "normalizers": [{"type": "Lowercase"}, {"type": "NFKC"}],
                }
            },
            'normalizer {"type": "NFKC"}',
        ),
        (
            {"pre_tokenizer": {"type": "ByteLevel", "use_regex": False}},
            'pre_tokenizer {"type": "ByteLevel", "use_regex": false}',
        ),
        (
            {"pre_tokenizer": {"type": "Whitespace"}},
            'pre_tokenizer {"type": "Whitespace"}',
        ),
    ],
)
def test_steps_of_tokenizer_json_that_change_ids_are_warned_of(
    caplog, changes, unsupported
):
    values = {"normalizer": None, "pre_tokenizer": {"type": "ByteLevel"}}
    text = json.dumps({**values, **changes})
    model_directory.warn_of_fast_tokenizer(text.encode("utf-8"))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == bool(unsupported)
    assert unsupported in "".join(lines)


@pytest.mark.parametrize(
    "model",
    [
        None,
        {"type": "WordPiece", "vocab": {"[PAD]": 0, "a": 1}},
        {"type": "Unigram", "vocab": [["a", -1.5]], "merges": []},
        {"type": "BPE", "vocab": {"\u0120": 0}, "merges": ["\ud800 a"]},
    ],
)
def test_another_kind_of_tokenizer_json_gives_no_vocabulary(
    tmp_path, caplog, model
):
    values, arrays = golden("masked_lm")
    given = hf_model(tmp_path / "a", arrays, values)
    text = json.dumps({"added_tokens": [], "model": model})
    (given / "tokenizer.json").write_text(text)
    convert("hf", "tf", given, tmp_path / "b" / "m")
    assert not (tmp_path / "b" / "vocab.json").exists()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("no vocab.json and merges.txt")


def test_added_tokens_are_one_id_each_in_text_too(tmp_path):
    added = {"<x>": FIRST, "<x>low": FIRST + 1, "\u4f60": FIRST + 2}
    files = model_with_tokenizer(tmp_path, FIRST + 3, added)
    (tmp_path / "plain").mkdir()
    plain = tokenization.RobertaTokenizer(
        *tiny_tokenizer.write(tmp_path / "plain")
    )
    tokenizer = tokenization.RobertaTokenizer(*files)
    assert tokenizer.vocab_size == FIRST + 3
    ids, offsets = tokenizer.encode_with_offsets(TEXT)
    assert ids == [
        *plain.encode("lower  new"),
        FIRST + 1,  # the longest one
        *plain.encode(" "),
        FIRST,
        FIRST + 2,
        *plain.encode(" <mask>"),  # ordinary text
    ]
    assert tokenizer.decode(ids) == TEXT
    spans = dict(zip(ids, offsets))
    assert [spans[FIRST + i] for i in range(3)] == [
        (17, 20),
        (10, 16),
        (20, 21),
    ]
    assert tokenizer.tokenize("a<x>") == ["a", "<x>"]
    lower = tokenization.RobertaTokenizer(*files, do_lower_case=True)
    assert lower.encode("a<X>\u4f60") == [*plain.encode("a"), FIRST, FIRST + 2]
    assert tokenizer.encode("lower new") == plain.encode("lower new")


@pytest.mark.parametrize(
    "added, message",
    [
        ({"<x>": FIRST, "<y>": FIRST + 2}, "the id of '<y>'"),
        ({"<s>": 3}, "the id of"),
    ],
)
def test_added_tokens_of_another_model_are_rejected(tmp_path, added, message):
    files = model_with_tokenizer(tmp_path, FIRST, added)
    with pytest.raises(errors.UserError, match=message):
        tokenization.RobertaTokenizer(*files)


def test_added_tokens_go_along_and_are_compared(tmp_path):
    added = {"<x>": FIRST, "<y>": FIRST + 1}
    model_with_tokenizer(tmp_path / "a", FIRST + 2, added)
    convert("hf", "tf", tmp_path / "a", tmp_path / "b" / "m")
    convert("tf", "hf", tmp_path / "b" / "m", tmp_path / "c")
    saved = json.loads((tmp_path / "c" / "added_tokens.json").read_text())
    assert saved == added
    (tmp_path / "a" / "added_tokens.json").write_text('{"<x>": 400}')
    message = refused("hf", "tf", tmp_path / "a", tmp_path / "d" / "m")
    assert "has the id 400, but the model has 288 embeddings" in message


@pytest.mark.parametrize("rows", [FIRST, 288])
@pytest.mark.parametrize("kind", ["<f4", "<f2"])
def test_tokens_are_added_with_initial_rows(tmp_path, rows, kind):
    model_with_tokenizer(tmp_path / "a", rows)
    values = json.loads((tmp_path / "a" / "config.json").read_text())
    old = {n: a.astype(kind) for n, a in hf_arrays(tmp_path / "a").items()}
    hf_model(tmp_path / "a", old, values)
    (tmp_path / "new.txt").write_text("<x>\n<y z>\n\u4f60\n", encoding="utf-8")
    for name in ("b", "again"):
        convert(
            "hf",
            "hf",
            tmp_path / "a",
            tmp_path / name,
            add_tokens=str(tmp_path / "new.txt"),
        )
    new = hf_arrays(tmp_path / "b")
    conversions.assert_same(new, hf_arrays(tmp_path / "again"))
    table = new[WORDS]
    assert table.shape == (FIRST + 3, 32) and table.dtype == kind
    np.testing.assert_array_equal(table[:FIRST], old[WORDS][:FIRST])
    np.testing.assert_array_equal(new["lm_head.bias"][FIRST:], 0)
    drawn = table[FIRST:].astype(float) / values["initializer_range"]
    assert 0.7 < drawn.std() < 1.05 and np.abs(drawn).max() <= 2.01
    tokenizer = tokenization.RobertaTokenizer(
        str(tmp_path / "b" / "vocab.json"), str(tmp_path / "b" / "merges.txt")
    )
    assert tokenizer.encode("\u4f60<y z><x>") == [FIRST + 2, FIRST + 1, FIRST]
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["vocab_size"] == FIRST + 3


@pytest.mark.parametrize(
    "text, message",
    [
        ("<x>\n\n<y>", "line 2: is empty"),
        ("low", "line 1: repeats"),
        ("", "empty"),
    ],
)
def test_tokens_that_are_not_new_are_refused(tmp_path, text, message):
    model_with_tokenizer(tmp_path / "a", FIRST)
    (tmp_path / "new.txt").write_text(text, encoding="utf-8")
    out = tmp_path / "out" / "m"
    options = {"add_tokens": str(tmp_path / "new.txt")}
    assert message in refused("hf", "tf", tmp_path / "a", out, **options)
    (tmp_path / "a" / "vocab.json").unlink()
    message = refused("hf", "tf", tmp_path / "a", out, **options)
    assert "the model has no vocabulary; pass --vocab_file" in message


# --- Positions --------------------------------------------------------------


def test_positions_are_interpolated(tmp_path):
    values, arrays = golden("masked_lm")  # 64 positions after two unused rows
    given = hf_model(tmp_path / "a", arrays, values)
    convert("hf", "hf", given, tmp_path / "b", max_position_embeddings=129)
    old, new = arrays[POSITIONS], hf_arrays(tmp_path / "b")[POSITIONS]
    assert new.shape == (129, 32)  # 127 places: each second one is an old one
    np.testing.assert_array_equal(new[:2], old[:2])
    np.testing.assert_array_equal(new[2::2], old[2:])
    np.testing.assert_allclose(new[3::2], (old[2:-1] + old[3:]) / 2, atol=1e-7)
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config == dict(values, max_position_embeddings=129)
    message = refused(
        "hf", "hf", given, tmp_path / "c", max_position_embeddings=60
    )
    assert "--max_position_embeddings=60" in message


def test_longer_sequences_reach_the_tokenizer(tmp_path):
    prefix = tiny.write_trained(tmp_path / "a", ["masked_lm"])
    convert("tf", "tf", prefix, tmp_path / "b" / "m")
    convert(
        "tf",
        "hf",
        tmp_path / "b" / "m",
        tmp_path / "c",
        max_position_embeddings=1026,
    )
    config = json.loads((tmp_path / "c" / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == 1024
    convert("hf", "tf", tmp_path / "c", tmp_path / "d" / "m")
    filler = predictor.Predictor(str(tmp_path / "d" / "m"), "fill-mask")
    assert filler.fill_mask("<mask>" + "a" * 1021)["masks"]
