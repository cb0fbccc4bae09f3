# SPDX-License-Identifier: Apache-2.0
"""README.md of a converted model, read by huggingface_hub."""

import pytest

from helpers.conversions import convert
from helpers.paths import FIRST_VERSION
from inference import exporting, trained_model
from weights import model_card

hub = pytest.importorskip("huggingface_hub")


@pytest.mark.parametrize(
    "prefix, task, scores",
    [
        (
            "pretraining/model.ckpt-8",
            "fill-mask",
            {"masked_lm_accuracy": 0.0204, "perplexity": 577.6963},
        ),
        (
            "squad/model.ckpt-26",
            "question-answering",
            {
                "exact": 34.6154,
                "f1": 34.6154,
                "best_exact": 34.6154,
                "best_f1": 35.3846,
            },
        ),
    ],
)
def test_the_card_of_a_model_is_valid(tmp_path, prefix, task, scores):
    options = {"license": "mit", "datasets": "acme/invented, acme/more"}
    convert("tf", "hf", FIRST_VERSION / prefix, tmp_path / "tiny", **options)
    card = hub.ModelCard.load(tmp_path / "tiny" / "README.md")
    data = card.data
    assert (data.license, data.language) == ("mit", "en")
    assert data.datasets == ["acme/invented", "acme/more"]
    assert set(data.metrics) == set(scores) and data.model_name == "tiny"
    assert {r.metric_type: r.metric_value for r in data.eval_results} == scores
    for result in data.eval_results:
        assert (result.task_type, result.dataset_type) == (
            task,
            "acme/invented",
        )
    assert task in card.text
    assert 'AutoTokenizer.from_pretrained("tiny")' in card.text


def test_the_card_of_a_slim_export_has_the_scores(tmp_path):
    model = trained_model.find(str(FIRST_VERSION / "squad"))
    exporting.export(model, "squad", "slim", str(tmp_path / "slim"))
    convert("tf", "hf", tmp_path / "slim" / "model.ckpt-26", tmp_path / "hf")
    data = hub.ModelCard.load(tmp_path / "hf" / "README.md").data
    assert set(data.metrics) == {"exact", "f1", "best_exact", "best_f1"}


def test_counts_and_losses_are_not_scores(tmp_path):
    (tmp_path / "eval_results.txt").write_text(
        "accuracy_matched = 0.5\nexact_match = 1.0\nexamples = 60\n"
        "global_step = 75\nloss = 0.3\nloss_matched = 0.3\nwords = 3\n"
    )
    assert model_card.read_scores(str(tmp_path)) == {
        "accuracy_matched": 0.5,
        "exact_match": 1.0,
    }


def test_an_edited_card_is_kept(tmp_path):
    source = FIRST_VERSION / "hf"
    convert("hf", "hf", source, tmp_path / "out")
    card = tmp_path / "out" / "README.md"
    assert hub.ModelCard.load(card).data.license == "unknown"
    card.write_text("mine")
    convert("hf", "hf", source, tmp_path / "out", overwrite=True)
    assert card.read_text() == "mine"
