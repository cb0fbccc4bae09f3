# SPDX-License-Identifier: Apache-2.0
"""Outputs of models in Hugging Face's transformers.

    python tests/helpers/transformers_outputs.py DIRECTORY < inputs > outputs

Needs transformers and torch, and nothing of this project. A line of the input
is a JSON object with text, and question or text_b; a line of the output:

    fill-mask  {"ids", "scores"}: probabilities of each mask, [masks][V]
    answer     {"ids", "start", "end"}: logits of each token
    classify   {"ids", "scores"}: {label: probability}
    tag        {"ids", "scores"}: [{label: probability}] of each token

A text that is too long is truncated by the tokenizer.
"""

import json
import sys

import torch
import transformers


def load(directory):
    """(tokenizer, model of the class that config.json names)."""
    config = transformers.AutoConfig.from_pretrained(directory)
    model_class = getattr(transformers, config.architectures[0])
    model, report = model_class.from_pretrained(
        directory, output_loading_info=True
    )
    assert not report["missing_keys"], report["missing_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    return tokenizer, model.eval()


def outputs(tokenizer, model, item):
    """The outputs for an input."""
    texts = [item["text"]]
    if "question" in item:
        texts.insert(0, item["question"])
    if item.get("text_b"):
        texts.append(item["text_b"])
    batch = tokenizer(*texts, truncation=True, return_tensors="pt")
    result = model(**batch)
    ids = batch["input_ids"][0]
    values = {"ids": ids.tolist()}
    if "question" in item:
        values.update(
            start=result.start_logits[0].tolist(),
            end=result.end_logits[0].tolist(),
        )
    elif tokenizer.mask_token_id in ids:
        logits = result.logits[0][ids == tokenizer.mask_token_id]
        values["scores"] = logits.softmax(-1).tolist()
    else:
        kind = model.config.problem_type
        is_set = kind == "multi_label_classification"
        logits = result.logits[0]
        scores = (logits.sigmoid() if is_set else logits.softmax(-1)).tolist()
        names = model.config.id2label.values()
        values["scores"] = (
            [dict(zip(names, row)) for row in scores]
            if logits.ndim == 2
            else dict(zip(names, scores))
        )
    return values


def main():
    transformers.logging.set_verbosity_error()
    tokenizer, model = load(sys.argv[1])
    with torch.no_grad():
        for line in sys.stdin:
            print(json.dumps(outputs(tokenizer, model, json.loads(line))))


if __name__ == "__main__":
    main()
