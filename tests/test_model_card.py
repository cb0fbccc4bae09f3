# SPDX-License-Identifier: Apache-2.0
"""README.md of a converted model, read by huggingface_hub."""

import pytest

from helpers.conversions import convert
from helpers.paths import FIRST_VERSION

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


def test_an_edited_card_is_kept(tmp_path):
    source = FIRST_VERSION / "hf"
    convert("hf", "hf", source, tmp_path / "out")
    card = tmp_path / "out" / "README.md"
    assert hub.ModelCard.load(card).data.license == "unknown"
    card.write_text("mine")
    convert("hf", "hf", source, tmp_path / "out", overwrite=True)
    assert card.read_text() == "mine"
