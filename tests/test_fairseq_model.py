# SPDX-License-Identifier: Apache-2.0
"""fairseq checkpoints, written here in its layout: names and row order."""

import argparse
import json

import numpy as np
import pytest
import safetensors.numpy

from common import errors
from helpers import fairseq_files, torch_writer
from helpers.fairseq_files import (
    FAIRSEQ_TOKENS,
    ORDER,
    TEXTS,
    VOCABULARY,
    checkpoint,
    fairseq_state,
    golden,
    lines_of,
)
from helpers.paths import GOLDEN
from weights import conversion, fairseq_model


@pytest.fixture
def model(tmp_path):
    """A directory with model.pt, dict.txt and merges.txt."""
    directory = fairseq_files.write(tmp_path / "fairseq")
    (tmp_path / "vocab.json").write_text(json.dumps(VOCABULARY))
    return directory


def convert(given, output, target="hf", **options):
    lines = []
    conversion.convert(
        "fairseq",
        target,
        conversion.ConvertConfig(
            input=str(given), output=str(output), **options
        ),
        lines.append,
    )
    return lines


def refused(given, output, **options):
    with pytest.raises(errors.UserError) as caught:
        convert(given, output, **options)
    assert not output.exists()
    return str(caught.value)


def hf_arrays(directory):
    return safetensors.numpy.load_file(str(directory / "model.safetensors"))


def assert_golden(arrays, name="masked_lm", order=None):
    """Equality with a reference model; fairseq knows no token types."""
    expected = golden(name)
    key = "roberta.embeddings.token_type_embeddings.weight"
    expected[key] = np.zeros_like(expected[key])
    assert set(arrays) == set(expected)
    for key, array in expected.items():
        if order is not None and array.shape[0] == 300:
            array = array[order]
        assert array.dtype == arrays[key].dtype
        np.testing.assert_array_equal(arrays[key], array, err_msg=key)


@pytest.mark.parametrize("is_old", [True, False])
@pytest.mark.parametrize(
    "writer", [torch_writer.save, torch_writer.save_legacy]
)
def test_rows_go_to_the_ids_of_the_vocabulary(tmp_path, model, is_old, writer):
    writer(
        model / "model.pt", checkpoint(fairseq_state(golden(), is_old=is_old))
    )
    convert(model, tmp_path / "hf", vocab_file=str(tmp_path / "vocab.json"))
    assert_golden(hf_arrays(tmp_path / "hf"))
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    expected = json.loads((GOLDEN / "masked_lm" / "config.json").read_text())
    for key in (
        "architectures",
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "layer_norm_eps",
        "intermediate_size",
        "max_position_embeddings",
        "hidden_act",
        "type_vocab_size",
        "pad_token_id",
        "model_type",
    ):
        assert config[key] == expected[key], key
    assert config["hidden_dropout_prob"] == 0.1
    assert (tmp_path / "hf" / "merges.txt").read_bytes() == (
        model / "merges.txt"
    ).read_bytes()


def test_without_a_vocabulary_one_is_written_in_the_models_order(
    tmp_path, model
):
    convert(model, tmp_path / "hf")
    written = json.loads((tmp_path / "hf" / "vocab.json").read_text())
    assert written == {token: i for i, token in enumerate(FAIRSEQ_TOKENS)}
    assert_golden(
        hf_arrays(tmp_path / "hf"),
        order=[VOCABULARY[token] for token in FAIRSEQ_TOKENS],
    )


def test_a_fairseq_model_makes_the_round_trip_by_tensorflow(tmp_path, model):
    convert(
        model,
        tmp_path / "tf" / "m",
        "tf",
        vocab_file=str(tmp_path / "vocab.json"),
    )
    for file in ("vocab.json", "merges.txt", "config.json"):
        assert (tmp_path / "tf" / file).is_file()
    conversion.convert(
        "tf",
        "hf",
        conversion.ConvertConfig(
            input=str(tmp_path / "tf" / "m"), output=str(tmp_path / "hf")
        ),
        lambda line: None,
    )
    assert_golden(hf_arrays(tmp_path / "hf"))


def test_encoder_json_says_what_the_numbers_mean(tmp_path, model):
    (model / "merges.txt").unlink()
    (model / "encoder.json").write_text(
        json.dumps({token: number for number, token in enumerate(TEXTS)})
    )
    convert(model, tmp_path / "hf", vocab_file=str(tmp_path / "vocab.json"))
    assert_golden(hf_arrays(tmp_path / "hf"))


def test_vocab_bpe_is_another_name_of_the_merges(tmp_path, model):
    (model / "merges.txt").rename(model / "vocab.bpe")
    convert(model, tmp_path / "hf", vocab_file=str(tmp_path / "vocab.json"))
    assert_golden(hf_arrays(tmp_path / "hf"))
    assert (tmp_path / "hf" / "merges.txt").is_file()


def test_numbers_without_meaning_keep_their_order_with_a_warning(
    tmp_path, model, caplog
):
    (model / "merges.txt").unlink()
    convert(model, tmp_path / "hf")
    assert not (tmp_path / "hf" / "vocab.json").exists()
    assert "no vocab.json and merges.txt" in caplog.records[0].getMessage()


def test_numbers_without_meaning_and_another_order_are_refused(tmp_path, model):
    (model / "merges.txt").unlink()
    assert "pass --merges_file" in refused(
        model, tmp_path / "hf", vocab_file=str(tmp_path / "vocab.json")
    )


def test_the_order_of_single_bytes_shows_that_nothing_moves(tmp_path, model):
    (model / "merges.txt").unlink()
    same = {token: i for i, token in enumerate(FAIRSEQ_TOKENS)}
    (tmp_path / "vocab.json").write_text(json.dumps(same))
    convert(model, tmp_path / "hf", vocab_file=str(tmp_path / "vocab.json"))
    assert_golden(
        hf_arrays(tmp_path / "hf"),
        order=[VOCABULARY[token] for token in FAIRSEQ_TOKENS],
    )


def test_a_dictionary_of_texts_needs_no_merges(tmp_path, model):
    (model / "merges.txt").unlink()
    (model / "dict.txt").write_text(
        "".join(f"{TEXTS[number]} 7\n" for number in ORDER), encoding="utf-8"
    )
    convert(model, tmp_path / "hf", vocab_file=str(tmp_path / "vocab.json"))
    assert_golden(hf_arrays(tmp_path / "hf"))


def test_padding_words_take_the_ids_that_are_free(tmp_path, model):
    texts = ["Ġ" + chr(97 + i) for i in range(3)]
    padded = [
        (
            f"madeupword{texts.index(TEXTS[number]):04d}"
            if TEXTS[number] in texts
            else str(number)
        )
        for number in ORDER
    ]
    (model / "dict.txt").write_text(
        "".join(f"{symbol} 0\n" for symbol in padded)
    )
    vocabulary = {
        token: i for token, i in VOCABULARY.items() if token not in texts
    }
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    convert(model, tmp_path / "hf", vocab_file=str(tmp_path / "vocab.json"))
    name = "roberta.embeddings.word_embeddings.weight"
    expected, rows = golden()[name], hf_arrays(tmp_path / "hf")[name]
    used = sorted(vocabulary.values())
    np.testing.assert_array_equal(rows[used], expected[used])
    free = sorted(VOCABULARY[text] for text in texts)
    assert sorted(map(bytes, rows[free])) == sorted(map(bytes, expected[free]))


def test_real_dictionary_gives_the_real_vocabulary(shared):
    directory = shared / "data" / "roberta"
    vocabulary = json.loads(
        (directory / "vocab.json").read_text(encoding="utf-8")
    )
    tokens = fairseq_model.gpt2_tokens(str(directory / "merges.txt"))
    assert len(tokens) == 50257 and tokens[13] == "." and tokens[262] == "Ġthe"
    numbers = {token: str(number) for number, token in enumerate(tokens)}
    symbols = [
        numbers.get(token, token)
        for token in sorted(vocabulary, key=vocabulary.get)
    ]
    order = fairseq_model.row_order(
        symbols,
        fairseq_model._texts(symbols, str(directory / "merges.txt"), None),
        vocabulary,
        "vocab.json",
    )
    np.testing.assert_array_equal(order, np.arange(50265))


@pytest.mark.parametrize("is_old", [True, False])
def test_a_classification_head_is_taken(tmp_path, model, is_old):
    state = fairseq_state(golden("sequence_classification"), is_old=is_old)
    torch_writer.save(model / "model.pt", checkpoint(state))
    convert(model, tmp_path / "hf", vocab_file=str(tmp_path / "vocab.json"))
    assert_golden(hf_arrays(tmp_path / "hf"), "sequence_classification")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architectures"] == ["RobertaForSequenceClassification"]
    assert len(config["id2label"]) == 3 and config["classifier_dropout"] == 0


def test_of_two_heads_one_is_chosen(tmp_path, model):
    arrays = golden("sequence_classification")
    state = fairseq_state(arrays, is_old=False, head="rte")
    for name in list(state):
        if name.startswith("classification_heads"):
            state[name.replace("rte", "mnli")] = state[name] + 1
    torch_writer.save(model / "model.pt", checkpoint(state))
    options = {"vocab_file": str(tmp_path / "vocab.json")}
    assert "the classification heads mnli, rte; choose one" in refused(
        model, tmp_path / "hf", **options
    )
    assert "'cola', but" in refused(
        model, tmp_path / "hf", classification_head="cola", **options
    )
    lines = convert(
        model, tmp_path / "hf", classification_head="rte", **options
    )
    assert_golden(hf_arrays(tmp_path / "hf"), "sequence_classification")
    assert (
        "left out: classification_heads.mnli.dense.bias (another "
        "classification head)"
    ) in lines


@pytest.mark.parametrize("form", ["dict", "namespace", "omegaconf"])
def test_settings_of_newer_checkpoints_are_found(tmp_path, model, form):
    given = checkpoint(fairseq_state(golden(), is_old=False))
    settings = vars(given["args"])
    given["args"] = None
    if form == "dict":
        given["cfg"] = {"model": settings}
    elif form == "namespace":
        given["cfg"] = {"model": argparse.Namespace(**settings)}
    else:
        pickler = torch_writer.Pickler(False)
        nodes = {
            name: (
                b"comegaconf.nodes\nAnyNode\n)\x81"
                + pickler.value({"_val": value})
                + b"b"
            )
            for name, value in settings.items()
        }
        config = (
            b"comegaconf\nDictConfig\n)\x81"
            + pickler.value({"_content": nodes})
            + b"b"
        )
        given["cfg"] = (
            b"comegaconf\nDictConfig\n)\x81"
            + pickler.value({"_content": {"model": config}})
            + b"b"
        )
    torch_writer.save(model / "model.pt", given)
    convert(model, tmp_path / "hf", vocab_file=str(tmp_path / "vocab.json"))
    assert_golden(hf_arrays(tmp_path / "hf"))


def test_without_settings_heads_come_from_a_config_beside(tmp_path, model):
    torch_writer.save(
        model / "model.pt", {"model": fairseq_state(golden(), is_old=False)}
    )
    options = {"vocab_file": str(tmp_path / "vocab.json")}
    assert "does not have encoder_attention_heads" in refused(
        model, tmp_path / "hf", **options
    )
    (model / "config.json").write_text('{"num_attention_heads": 4}')
    convert(model, tmp_path / "hf", **options)
    assert_golden(hf_arrays(tmp_path / "hf"))


def test_everything_else_in_the_checkpoint_is_named(tmp_path, model):
    lines = convert(
        model, tmp_path / "hf", vocab_file=str(tmp_path / "vocab.json")
    )
    left_out = {
        line.split()[2] for line in lines if line.startswith("left out: ")
    }
    assert left_out == {
        "args",
        "optimizer_history",
        "last_optimizer_state",
        "encoder.sentence_encoder.version",
        "encoder.lm_head.weight",
    }
    assert any(
        line.startswith("(zeros: fairseq has no token types) F32 [1, 32] -> ")
        for line in lines
    )


FC1 = "encoder.sentence_encoder.layers.1.fc1.weight"


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda s: s.pop(FC1), FC1 + " [64, 32] is missing"),
        (
            lambda s: s.update({FC1 + "x": s.pop(FC1)}),
            f"{FC1 + 'x'!r} [64, 32] is not expected",
        ),
        (
            lambda s: s.update({FC1: s[FC1].T.copy()}),
            FC1 + " is [32, 64], expected [64, 32]",
        ),
        (
            lambda s: s.update(
                {FC1.replace("encoder.", "decoder.", 1): s[FC1]}
            ),
            "twice: as ",
        ),
        (
            lambda s: s.update(
                {
                    "encoder.lm_head.weight": np.zeros_like(
                        s["encoder.lm_head.weight"]
                    )
                }
            ),
            "encoder.lm_head.weight differs from",
        ),
        (
            lambda s: s.update(
                {
                    "encoder.sentence_encoder.layer_norm.weight": np.zeros(
                        32, np.float32
                    )
                }
            ),
            "sentence_encoder.layer_norm.weight' [32] is not expected",
        ),
        (lambda s: s.update(x=3), "under \"model\": 'x' is not a tensor"),
        (
            lambda s: s.pop("encoder.sentence_encoder.embed_tokens.weight"),
            "vocab_size",
        ),
        (lambda s: s.clear(), "vocab_size"),
    ],
)
def test_a_model_that_is_not_whole_is_refused_by_name(
    tmp_path, model, change, expected
):
    state = fairseq_state(golden(), is_old=False)
    change(state)
    torch_writer.save(model / "model.pt", checkpoint(state))
    assert expected in refused(
        model, tmp_path / "hf", vocab_file=str(tmp_path / "vocab.json")
    )


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"encoder_layers": 3}, "layers.2.self_attn.q_proj.weight"),
        ({"encoder_layers": 900}, "the config has 900 layers"),
        ({"encoder_layers": 10**9}, "expected 1 to 1000"),
        ({"encoder_layers": "2"}, "does not have encoder_layers"),
        ({"encoder_attention_heads": 0}, "num_attention_heads is 0"),
        ({"max_positions": 512}, "is [66, 32], expected [514, 32]"),
        ({"activation_fn": "relu"}, "activation 'relu'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path, model, settings, expected
):
    torch_writer.save(
        model / "model.pt",
        checkpoint(fairseq_state(golden(), is_old=False), **settings),
    )
    assert expected in refused(model, tmp_path / "hf")


@pytest.mark.parametrize(
    "text, expected",
    [
        (lines_of(ORDER[1:]), "gives 299 tokens"),
        (lines_of(ORDER + [900]), "gives 301 tokens"),
        (lines_of(ORDER[1:] + [295]), "token number 295, but"),
        (lines_of(ORDER[1:] + [ORDER[1]]), "repeats '"),
        ("13\n", "line 1 is '13'; expected a token and its count"),
        ("", "line 1 is ''"),
        ("<s> 1\n", "repeats '"),
    ],
)
def test_a_dictionary_that_does_not_fit_is_refused(
    tmp_path, model, text, expected
):
    (model / "dict.txt").write_text(text)
    assert expected in refused(model, tmp_path / "hf")


@pytest.mark.parametrize(
    "changes, expected",
    [
        (
            {"Ġa": None, "other": 260},
            "only in vocab.json, such as 'other'; 1 are "
            "only in dict.txt, such as 'Ġa'",
        ),
        ({"<mask>": None}, "only in dict.txt, such as '<mask>'"),
        ({"<pad>": 0, "<s>": 1}, "<pad> has the id 0"),
        ({"<mask>": 300}, "has 300 embeddings"),
    ],
)
def test_a_vocabulary_of_other_tokens_is_refused(
    tmp_path, model, changes, expected
):
    vocabulary = dict(VOCABULARY, **changes)
    (tmp_path / "vocab.json").write_text(
        json.dumps(
            {token: i for token, i in vocabulary.items() if i is not None}
        )
    )
    assert expected in refused(
        model, tmp_path / "hf", vocab_file=str(tmp_path / "vocab.json")
    )


def test_missing_files_are_named(tmp_path, model):
    (model / "dict.txt").unlink()
    assert "dict.txt does not exist" in refused(model, tmp_path / "hf")
    assert "checkpoint.pt does not exist" in refused(
        model / "checkpoint.pt", tmp_path / "hf"
    )


@pytest.mark.parametrize("value", [[1], {"a": 1}, {"model": 3}])
def test_another_file_of_torch_is_refused(tmp_path, model, value):
    torch_writer.save(model / "model.pt", value)
    assert 'no "model" in it' in refused(model, tmp_path / "hf")
