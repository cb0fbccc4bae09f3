# SPDX-License-Identifier: Apache-2.0
"""Peers that benchmark.py times beside the suite, each in its own process.

    PYTHON scripts/benchmark_peers.py STAGE PEER SETTINGS WORK

benchmark.py starts it, in its own Python or in that of --peers_python; each
line on standard input runs the peer once.
"""

import functools
import itertools
import json
import os
import pathlib
import shutil
import sys
import types
import typing

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np

import squad
import tokenization
from pretraining_data import records
from scripts import benchmark_contenders
from scripts.benchmark_contenders import Contender, versions

# GPT-2's pattern, with which RoBERTa's vocabulary was made.
_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?!\S)|\s+"
)


# --- Tokenizers, records and features ---------------------------------------


def _new_tokenizer(settings):
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import tokenizers

    return tokenizers.ByteLevelBPETokenizer(
        settings.vocab_file, settings.merges_file
    )


def _tokenizers(settings):
    """A function that makes an encoder, and versions."""
    import tokenizers

    def new():
        tokenizer = _new_tokenizer(settings)
        return lambda line: tokenizer.encode(line).ids

    return new, versions(tokenizers)


def _tiktoken(settings):
    """The same for tiktoken, its ranks in the order of the merges."""
    import tiktoken

    ours = tokenization.RobertaTokenizer(
        settings.vocab_file, settings.merges_file
    )
    ranks = {bytes([byte]): byte for byte in range(256)}
    for line in benchmark_contenders.lines_of(settings.merges_file):
        if " " in line and not line.startswith("#version"):
            merged = "".join(line.split())
            token = ours.decode(ours.convert_tokens_to_ids([merged]))
            ranks.setdefault(
                token.encode("utf-8", "surrogateescape"), len(ranks)
            )

    def new():
        return tiktoken.Encoding(
            "roberta",
            pat_str=_PATTERN,
            special_tokens={},
            mergeable_ranks=ranks,
        ).encode_ordinary

    return new, versions(tiktoken)


def _warm(tokenizer, settings, _):
    new, about = tokenizer(settings)
    lines = benchmark_contenders.lines_of(settings.text_file)
    return Contender(
        "", *benchmark_contenders.encoding_of(lines, new), versions=about
    )


def _cold(tokenizer, settings, work):
    new, about = tokenizer(settings)
    lines = benchmark_contenders.cold_lines(settings, work)
    return Contender(
        "", *benchmark_contenders.from_nothing(lines, new), versions=about
    )


def _datasets(settings, work):
    """Encoded, cut into blocks and written as Arrow in one `map`."""
    import datasets
    import tokenizers

    tokenizer = _new_tokenizer(settings)
    text = benchmark_contenders.grown_text(
        settings.text_file, work, settings.text_megabytes
    )
    cache, length = os.path.join(work, "datasets"), settings.record_length

    def blocks(batch):
        ids = [
            token
            for encoding in tokenizer.encode_batch(batch["text"])
            for token in encoding.ids
        ]
        return {
            "input_ids": [
                ids[start : start + length]
                for start in range(0, len(ids) - length + 1, length)
            ]
        }

    def build():
        shutil.rmtree(cache, ignore_errors=True)
        datasets.Dataset.from_text(text, cache_dir=cache).map(
            blocks,
            batched=True,
            num_proc=os.cpu_count(),
            remove_columns=["text"],
        )

    return Contender(
        "",
        "MB/s",
        os.path.getsize(text) / 1e6,
        build,
        versions=versions(datasets, tokenizers),
    )


def _transformers_features(settings, _):
    import transformers

    examples = squad.read_examples(settings.squad_file, True, False)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = transformers.RobertaTokenizerFast(
        settings.vocab_file, settings.merges_file
    )
    pairs = [
        [getattr(example, field) for example in examples]
        for field in ("question", "context")
    ]

    def convert():
        return tokenizer(
            *pairs,
            truncation="only_second",
            max_length=384,
            stride=128,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )

    return Contender(
        "",
        "features/s",
        len(convert()["input_ids"]),
        convert,
        versions=versions(transformers),
    )


# --- Training steps ---------------------------------------------------------


def _masked_lm(settings, is_bf16, is_compiled=False):
    """RobertaForMaskedLM and its functions of inputs, loss and update."""
    import torch
    import transformers

    model = transformers.RobertaForMaskedLM(
        transformers.RobertaConfig(
            max_position_embeddings=514,
            type_vocab_size=1,
            **benchmark_contenders.sizes(settings),
        )
    )
    model.train()
    decays = [[], []]
    for weight in model.parameters():
        decays[weight.ndim > 1].append(weight)
    optimizer = torch.optim.AdamW(
        [
            {"params": weights, "weight_decay": 0.01 * decay}
            for decay, weights in enumerate(decays)
        ],
        lr=benchmark_contenders.RATE,
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    schedule = transformers.get_linear_schedule_with_warmup(
        optimizer, benchmark_contenders.WARM_UP, benchmark_contenders.UPDATES
    )
    run = torch.compile(model) if is_compiled else model

    def loss(inputs):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            return run(**inputs).loss

    def update(inputs):
        optimizer.zero_grad()
        loss(inputs).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()

    return model, loss, update


def _labelled(batch):
    """The inputs of RobertaForMaskedLM for a batch of masked sequences."""
    import torch

    labels = np.full_like(batch["input_ids"], -100)
    rows, masks = np.nonzero(batch["masked_lm_weights"])
    labels[rows, batch["masked_lm_positions"][rows, masks]] = batch[
        "masked_lm_ids"
    ][rows, masks]
    return {
        "input_ids": torch.tensor(batch["input_ids"]).long(),
        "attention_mask": torch.tensor(batch["input_mask"]).long(),
        "labels": torch.tensor(labels).long(),
    }


def _transformers_step(settings, _, is_bf16=False, is_compiled=False):
    """One update of a batch of random ids."""
    import torch
    import transformers

    batch = benchmark_contenders.masked_batch(settings)
    _, _, update = _masked_lm(settings, is_bf16, is_compiled)
    inputs = _labelled(batch)
    try:
        update(inputs)
    except RuntimeError as error:
        if is_compiled:  # for example without a C++ compiler
            raise ImportError("torch.compile") from error
        raise
    return Contender(
        "",
        "tokens/s",
        batch["input_ids"].size,
        lambda: update(inputs),
        versions=versions(torch, transformers),
    )


def _transformers_training(settings, work, is_bf16=False):
    """Batches and masks as in run_mlm.py, from the suite's records."""
    import torch
    import transformers

    model, loss, update = _masked_lm(settings, is_bf16)
    source = records.ShardedRecords(
        records.expand_inputs(os.path.join(work, "records"))
    )
    loader = torch.utils.data.DataLoader(
        [
            {"input_ids": example["input_ids"]}
            for example in source.read_examples(range(len(source)))
        ],
        settings.batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=transformers.DataCollatorForLanguageModeling(
            transformers.RobertaTokenizerFast(
                settings.vocab_file, settings.merges_file
            )
        ),
    )
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    values = dict(np.load(benchmark_contenders.held_out(work)))

    def held_out_loss():
        model.eval()
        total, size = 0.0, settings.batch_size
        for start in range(0, len(values["input_ids"]), size):
            batch = {k: v[start : start + size] for k, v in values.items()}
            with torch.no_grad():
                mean = loss(_labelled(batch)).item()
            total += mean * batch["masked_lm_weights"].sum()
        model.train()
        return total / values["masked_lm_weights"].sum()

    return benchmark_contenders.trains(
        settings, lambda: update(next(batches)), held_out_loss
    )._replace(versions=versions(torch, transformers))


def _pipeline(settings, work, batch_size=1, dtype="float32"):
    """Hugging Face's question-answering pipeline."""
    import torch
    import transformers

    # It is not in transformers 5.
    if not hasattr(transformers, "QuestionAnsweringPipeline"):
        raise ImportError("QuestionAnsweringPipeline")
    folder = os.path.join(work, "hf")
    answering = transformers.pipeline(
        "question-answering",
        model=folder,
        tokenizer=transformers.RobertaTokenizerFast.from_pretrained(folder),
        dtype=getattr(torch, dtype),
    )
    examples = benchmark_contenders.questions(settings)
    window = benchmark_contenders.WINDOW

    def answer():
        results = answering(
            question=[example.question for example in examples],
            context=[example.context for example in examples],
            batch_size=batch_size,
            max_seq_len=window["max_seq_length"],
            doc_stride=window["doc_stride"],
            max_question_len=window["max_query_length"],
            max_answer_len=window["max_answer_length"],
            align_to_words=False,
        )
        results = results if isinstance(results, list) else [results]
        return benchmark_contenders.agreement(
            [result["answer"] for result in results], work
        )

    return Contender(
        "",
        "questions/s",
        len(examples),
        answer,
        versions=versions(torch, transformers),
    )


def _bert_step(settings, _, next_sentence=True):
    """One update of google-research/bert's graph, from --bert_dir."""
    if not settings.bert_dir:
        raise ImportError("no --bert_dir")
    import tensorflow as tf

    if not hasattr(tf, "contrib"):
        raise ImportError("google-research/bert needs TensorFlow 1")
    sys.path.insert(0, settings.bert_dir)
    import modeling
    import optimization
    import run_pretraining

    batch = benchmark_contenders.masked_batch(settings)
    config = modeling.BertConfig(**benchmark_contenders.sizes(settings))
    features = {name: tf.constant(value) for name, value in batch.items()}
    model = modeling.BertModel(
        config,
        True,
        features["input_ids"],
        features["input_mask"],
        tf.zeros_like(features["input_ids"]),
    )
    loss = run_pretraining.get_masked_lm_output(
        config,
        model.get_sequence_output(),
        model.get_embedding_table(),
        *(
            features["masked_lm_" + name]
            for name in ("positions", "ids", "weights")
        ),
    )[0]
    if next_sentence:
        loss += run_pretraining.get_next_sentence_output(
            config,
            model.get_pooled_output(),
            tf.constant([0, 1] * (settings.batch_size // 2)),
        )[0]
    update = optimization.create_optimizer(loss, 1e-4, 1000000, 10, False)
    session = tf.Session()
    session.run(tf.global_variables_initializer())
    return Contender(
        "",
        "tokens/s",
        batch["input_ids"].size,
        lambda: session.run([update, loss]),
        versions={"tensorflow": tf.__version__},
    )


def _compiled_step(settings, _):
    """The suite itself: TensorFlow reads its XLA setting once a process."""
    from scripts import benchmark_stages

    return Contender(
        "", "tokens/s", *benchmark_stages.training_step(settings, use_xla=True)
    )


PEERS: typing.Dict[str, typing.Dict[str, typing.Callable]] = {
    "tokenizer": {
        "tokenizers": functools.partial(_warm, _tokenizers),
        "tiktoken": functools.partial(_warm, _tiktoken),
    },
    "cold": {
        "tokenizers": functools.partial(_cold, _tokenizers),
        "tiktoken": functools.partial(_cold, _tiktoken),
    },
    "data": {"datasets": _datasets},
    "features": {"transformers": _transformers_features},
    "step": {
        "google-research/bert": _bert_step,
        "google-research/bert, no NSP": functools.partial(
            _bert_step, next_sentence=False
        ),
        "transformers, PyTorch": _transformers_step,
        "transformers, torch.compile": functools.partial(
            _transformers_step, is_compiled=True
        ),
    },
    "bf16": {
        "transformers, autocast": functools.partial(
            _transformers_step, is_bf16=True
        ),
        "transformers, autocast, torch.compile": functools.partial(
            _transformers_step, is_bf16=True, is_compiled=True
        ),
    },
    "precision": {"this suite, XLA": _compiled_step},
    "answers": {
        "transformers' pipeline": _pipeline,
        "transformers' pipeline, batches of 8": functools.partial(
            _pipeline, batch_size=8
        ),
        "transformers' pipeline, bf16": functools.partial(
            _pipeline, dtype="bfloat16"
        ),
    },
    "time_to_loss": {
        "transformers, as run_mlm.py": _transformers_training,
        "transformers, as run_mlm.py, autocast": functools.partial(
            _transformers_training, is_bf16=True
        ),
    },
}


def main(stage: str, peer: str, values: str, work: str) -> None:
    """Serves a contender; `values` are settings as JSON."""
    settings = types.SimpleNamespace(**json.loads(values))
    benchmark_contenders.serve(lambda: PEERS[stage][peer](settings, work))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main(*sys.argv[1:])
