# SPDX-License-Identifier: Apache-2.0
"""A model directory: the files beside the weights that say how to use them.

config.json, vocab.json and merges.txt are Hugging Face's;
tokenizer_config.json says whether text is lower-cased and how transformers
builds the same tokenizer; task.json holds what the model was trained for.
Directories without the last two are read too.
"""

import dataclasses
import json
import math
import os
import typing

from absl import logging

import configuration
import tokenization
from common import errors, files
from weights import lazy_tensors
from weights import names as weight_names

CONFIG, VOCAB, MERGES = "config.json", "vocab.json", "merges.txt"
TOKENIZER_CONFIG, TOKENIZER = "tokenizer_config.json", "tokenizer.json"
ADDED_TOKENS = tokenization.ADDED_TOKENS
TASK = "task.json"
RUN = "run.json"  # of training, see training/run_record.py
FILES = (CONFIG, VOCAB, MERGES, ADDED_TOKENS, TOKENIZER_CONFIG, TOKENIZER, TASK)


class TokenizerFiles(typing.NamedTuple):
    """What turns text into the ids that a model is trained on."""

    vocab_file: str
    merges_file: str
    do_lower_case: bool = False


# --- Task -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Task:
    """What a model was trained for; None where it does not apply."""

    task: str = ""  # a key of names.PARTS
    max_seq_length: typing.Optional[int] = None
    doc_stride: typing.Optional[int] = None
    max_query_length: typing.Optional[int] = None
    max_answer_length: typing.Optional[int] = None
    version_2_with_negative: typing.Optional[bool] = None
    null_score_diff_threshold: typing.Optional[float] = None
    labels: typing.Optional[typing.List[str]] = None

    def values(self) -> typing.Dict[str, typing.Any]:
        """{name: value} of what applies."""
        return {k: v for k, v in vars(self).items() if v not in ("", None)}


_VALID: typing.Dict[str, typing.Callable[[typing.Any], bool]] = {
    "task": lambda value: value in list(weight_names.PARTS),
    "version_2_with_negative": lambda value: isinstance(value, bool),
    "null_score_diff_threshold": lambda value: (
        type(value) in (int, float) and math.isfinite(value)
    ),
    "labels": lambda value: (
        isinstance(value, list) and all(isinstance(v, str) for v in value)
    ),
    "max_seq_length": lambda value: type(value) is int and 4 <= value < 2**31,
}


def _is_size(value):
    return type(value) is int and 0 < value < 2**31


def read_task(directory: str) -> Task:
    """The task of a model directory; an empty one without task.json.

    Raises:
      errors.UserError: a value has the wrong type or is out of range.
    """
    path = os.path.join(directory, TASK)
    if not files.is_file(path):
        return Task()
    values = files.read_json(path, "a model's task.json")
    known = {
        field.name: values[field.name]
        for field in dataclasses.fields(Task)
        if values.get(field.name) is not None
    }
    for name, value in known.items():
        if not _VALID.get(name, _is_size)(value):
            raise errors.UserError(
                f"{path}: {name} is {value!r:.40}; remove the key, or copy the "
                "file again"
            )
    return Task(**known)


def task_of(directory: str, parts: typing.Iterable[str]) -> Task:
    """read_task, whose task is else the one head of the weights' parts."""
    task = read_task(directory)
    if task.task:
        return task
    return dataclasses.replace(task, task=weight_names.only_head(parts))


def task_differences(
    first: typing.Mapping[str, typing.Any],
    second: typing.Mapping[str, typing.Any],
) -> str:
    """`name VALUE, not VALUE` of what differs in Task.values(), or "".

    Not of the null threshold, which is chosen after training.
    """
    return ", ".join(
        f"{name} {first.get(name)!r:.40}, not {second.get(name)!r:.40}"
        for name in sorted({**first, **second})
        if name != "null_score_diff_threshold"
        and first.get(name) != second.get(name)
    )


def write_task(directory: str, task: Task) -> None:
    """Writes task.json, without the values that do not apply."""
    files.write_bytes(os.path.join(directory, TASK), task_bytes(task))


def task_bytes(task: Task) -> bytes:
    """The content of task.json."""
    return files.json_bytes(task.values())


# --- Config -----------------------------------------------------------------

# Values that change the output but not the shape of a weight.
_WITHOUT_SHAPE = ("num_attention_heads", "pad_token_id", "layer_norm_eps")
# What run.json has before a key of config.json.
KEY_IN_RUN = "config.json's "


def check_config(
    checkpoint: str,
    config: configuration.RobertaConfig,
    config_file: str,
    with_run: bool = True,
) -> None:
    """Compares a config with config.json and run.json next to a checkpoint.

    Args:
      checkpoint: its prefix.
      config: of the model.
      config_file: its file, for messages.
      with_run: whether to compare it with run.json too.

    Raises:
      errors.UserError: values differ that change the output but no shape.
    """
    directory = os.path.dirname(checkpoint)
    path = os.path.join(directory, CONFIG)
    trained = _trained_with(directory) if with_run else {}
    try:
        values = _read_json(path)
    except (OSError, errors.UserError):  # not of a model
        values = {}
    if not (values or trained):
        logging.warning(
            "%s: no model config beside the checkpoint, so %s of %s cannot be "
            "compared; copy the config.json of its weights there",
            checkpoint,
            ", ".join(_WITHOUT_SHAPE),
            config_file,
        )
    for name in _WITHOUT_SHAPE:
        actual = getattr(config, name)
        for file, expected in (
            (path, values.get(name)),
            (os.path.join(directory, RUN), trained.get(KEY_IN_RUN + name)),
        ):
            if expected not in (None, actual):
                raise errors.UserError(
                    f"{config_file} has {name} {actual!r}, but {file} next to "
                    f"{checkpoint} has {expected!r}, with which its weights "
                    "were trained; use that config, or the checkpoint of "
                    "another model"
                )


# --- Tokenizer --------------------------------------------------------------


def _has_lowercase(directory):
    """Whether tokenizer.json has a normalizer that lower-cases."""
    values = _read_json(os.path.join(directory, TOKENIZER))
    return "Lowercase" in str(values.get("normalizer"))


def lower_case(directory: str) -> typing.Optional[bool]:
    """What a directory says of lower-casing; None if nothing.

    tokenizer_config.json has do_lower_case, else tokenizer.json a normalizer.
    """
    path = os.path.join(directory, TOKENIZER_CONFIG)
    value = _read_json(path).get("do_lower_case")
    if isinstance(value, bool):
        return value
    return _has_lowercase(directory) or None


def lower_case_in_hf(directory: str) -> bool:
    """Whether transformers lower-cases text with a directory's tokenizer.

    Its RoBERTa classes ignore do_lower_case; a normalizer in tokenizer.json
    does it.
    """
    lowers = _has_lowercase(directory)
    if lower_case(directory) and not lowers:
        logging.warning(
            "%s: do_lower_case is ignored, as transformers does for RoBERTa; "
            "the model is cased",
            os.path.join(directory, TOKENIZER_CONFIG),
        )
    return lowers


def _read_json(path):
    """The object in a file, {} without it."""
    return files.read_json(path) if files.is_file(path) else {}


def read_vocabulary(vocab_file: str) -> typing.Dict[str, int]:
    """{token: id} of a vocab.json and the added_tokens.json beside it."""
    ids = files.read_json(vocab_file, "a vocab.json")
    return {**ids, **tokenization.added_tokens(vocab_file)}


def find_tokenizer(directory: str) -> typing.Optional[TokenizerFiles]:
    """The tokenizer files of a directory, None unless both are there."""
    vocab, merges = (os.path.join(directory, n) for n in (VOCAB, MERGES))
    if not (files.is_file(vocab) and files.is_file(merges)):
        return None
    return TokenizerFiles(vocab, merges, bool(lower_case(directory)))


def check_length(
    max_seq_length: int, config: configuration.RobertaConfig, config_file: str
) -> str:
    """Checks that the model has positions for --max_seq_length."""
    most = config.max_sequence_length
    if max_seq_length > most:
        raise errors.UserError(
            f"--max_seq_length is {max_seq_length}, but {config_file} has "
            f"positions for {most} (max_position_embeddings "
            f"{config.max_position_embeddings} less pad_token_id "
            f"{config.pad_token_id} and 1; 512 tokens need 514); use {most} or "
            "less"
        )
    return (
        f"{max_seq_length} tokens of {most} that {config_file} has positions "
        "for"
    )


def check_vocabulary(
    vocab_file: str, config: configuration.RobertaConfig, config_file: str
) -> typing.Dict[str, int]:
    """Checks that a vocabulary is the model's: its size, the id of `<pad>`.

    Returns:
      {token: id}. The model may have more embeddings, see
      configuration.has_rows_for.
    """
    ids = read_vocabulary(vocab_file)
    pad_id = ids.get("<pad>")
    for fits, text, key in (
        (
            configuration.has_rows_for(config.vocab_size, len(ids)),
            f"{len(ids)} entries",
            "vocab_size",
        ),
        (pad_id == config.pad_token_id, f"<pad> at {pad_id}", "pad_token_id"),
    ):
        if not fits:
            raise errors.UserError(
                f"{vocab_file} has {text}, but {config_file} "
                f"has {key} {getattr(config, key)}; use the vocabulary of "
                "that model, or convert the model again"
            )
    return ids


def check_ids(
    ids: typing.Dict[str, int], path: str, vocab_size: int
) -> typing.Dict[str, int]:
    """Checks that a vocabulary's ids are the rows of a model's embeddings.

    Args:
      ids: {token: id}.
      path: of the vocabulary, for messages.
      vocab_size: number of embeddings.

    Returns:
      The ids.

    Raises:
      errors.UserError: an id is not a number, repeated, or has no embedding.
    """
    for token, number in ids.items():
        if type(number) is not int or not 0 <= number < vocab_size:
            raise errors.UserError(
                f"{path}: {lazy_tensors.quoted(token)} has the id "
                f"{number!r:.40}, but the model has {vocab_size} embeddings; "
                "use the vocabulary of the model"
            )
    if len(set(ids.values())) != len(ids):
        raise errors.UserError(
            f"{path}: two tokens have the same id; use the vocabulary of the "
            "model"
        )
    return ids


def write_tokenizer(
    directory: str, tokenizer: TokenizerFiles, model_max_length: int
) -> None:
    """Writes the tokenizer's files into a model directory.

    Args:
      directory: of the model.
      tokenizer: where its files are, and whether it lower-cases.
      model_max_length: tokens of a sequence, special ones included.
    """
    contents = tokenizer_contents(tokenizer, model_max_length)
    for name, data in with_tokenizer_json(directory, contents).items():
        files.write_bytes(os.path.join(directory, name), data)


def with_tokenizer_json(
    directory: str, contents: typing.Dict[str, bytes]
) -> typing.Dict[str, bytes]:
    """The contents, with a tokenizer.json where a directory has an old one.

    transformers prefers it to vocab.json and merges.txt.

    Args:
      directory: to write to.
      contents: {name: content} of a tokenizer's files.
    """
    path = os.path.join(directory, TOKENIZER)
    if not {VOCAB, MERGES} <= contents.keys() or not os.path.exists(path):
        return contents
    return {TOKENIZER: _tokenizer_json(contents, lowers=False), **contents}


def tokenizer_contents(
    tokenizer: TokenizerFiles, model_max_length: int
) -> typing.Dict[str, bytes]:
    """{name: content} of the files that describe a tokenizer.

    transformers reads them: 4.57 and 5.24 give the same ids as
    tokenization.RobertaTokenizer, with `<mask>` taking the space before it.
    Lower-casing needs tokenizer.json, its own RoBERTa classes cannot.
    """
    contents = {
        VOCAB: files.read_bytes(tokenizer.vocab_file),
        MERGES: files.read_bytes(tokenizer.merges_file),
    }
    added = tokenization.added_tokens_file(tokenizer.vocab_file)
    if added:
        contents[ADDED_TOKENS] = files.read_bytes(added)
    return {
        **contents,
        **description(contents, tokenizer.do_lower_case, model_max_length),
    }


def description(
    tokenizer: typing.Mapping[str, bytes],
    do_lower_case: bool,
    model_max_length: int,
    saved_config: bytes = b"{}",
) -> typing.Dict[str, bytes]:
    """{name: content} of what transformers reads beside the vocabulary.

    Args:
      tokenizer: {name: content} of vocab.json, merges.txt, added_tokens.json.
      do_lower_case: whether text is lower-cased.
      model_max_length: tokens of a sequence, special ones included.
      saved_config: content of a tokenizer_config.json, whose keys are kept.

    Raises:
      errors.UserError: a file is not one of RoBERTa's.
    """
    contents = {}
    config = {
        "tokenizer_class": "RobertaTokenizer",
        "do_lower_case": do_lower_case,
        "model_max_length": model_max_length,
        "add_prefix_space": False,
        "errors": "replace",
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": dict(
            _special_token("<mask>", lstrip=True), __type="AddedToken"
        ),
    }
    if do_lower_case:
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        contents[TOKENIZER] = _tokenizer_json(tokenizer, lowers=True)
    saved = files.parse_json(saved_config, TOKENIZER_CONFIG)
    if saved.get("add_prefix_space"):
        logging.warning(
            "%s: add_prefix_space is not supported: the first word of a text "
            "is encoded without a space before it",
            TOKENIZER_CONFIG,
        )
    fixed = {
        name: config[name] for name in ("do_lower_case", "add_prefix_space")
    }
    values = {**config, **saved, **fixed}
    contents[TOKENIZER_CONFIG] = (
        saved_config if values == saved else files.json_bytes(values)
    )
    return contents


def _special_token(
    content: str, lstrip: bool = False
) -> typing.Dict[str, typing.Any]:
    return {
        "content": content,
        "single_word": False,
        "lstrip": lstrip,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def added_token(token: str, number: int) -> typing.Dict[str, typing.Any]:
    """An added token as tokenizer.json lists it."""
    return dict(
        _special_token(token), id=number, normalized=True, special=False
    )


def _tokenizer_json(
    tokenizer: typing.Mapping[str, bytes], lowers: bool
) -> bytes:
    try:
        return files.json_bytes(_fast_tokenizer(tokenizer, lowers))
    except (KeyError, UnicodeError) as error:
        raise errors.UserError(
            f"{VOCAB} and {MERGES}: not RoBERTa's tokenizer: {error!r}; "
            "pass the model's own --vocab_file and --merges_file"
        ) from error


def _fast_tokenizer(
    tokenizer: typing.Mapping[str, bytes], lowers: bool
) -> typing.Dict[str, typing.Any]:
    """tokenizer.json of a byte-level BPE, lower-casing or not.

    Source: the format of Hugging Face's tokenizers 0.22.
    """
    vocab = files.parse_json(tokenizer[VOCAB], VOCAB, "a vocab.json")
    added = files.parse_json(tokenizer.get(ADDED_TOKENS, b"{}"), ADDED_TOKENS)
    ids = {**vocab, **added}
    specials = [
        dict(_special_token(token, lstrip=token == "<mask>"), id=ids[token])
        for token in tokenization.SPECIAL_TOKENS
        if token in ids
    ]
    specials += [
        added_token(token, number)
        for token, number in added.items()
        if token not in tokenization.SPECIAL_TOKENS
    ]
    level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": specials,
        "normalizer": {"type": "Lowercase"} if lowers else None,
        "pre_tokenizer": dict(level, add_prefix_space=False),
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": ["</s>", ids["</s>"]],
            "cls": ["<s>", ids["<s>"]],
            "trim_offsets": True,
            "add_prefix_space": False,
        },
        "decoder": dict(level, add_prefix_space=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": _merges(tokenizer[MERGES]),
        },
    }


def from_fast_tokenizer(content: bytes) -> typing.Dict[str, bytes]:
    """{name: content} of vocab.json, merges.txt and added_tokens.json.

    Args:
      content: of a tokenizer.json; {} follows unless it is a byte-level BPE.
    """
    values = files.parse_json(content, TOKENIZER, "a tokenizer.json")
    try:
        vocab = dict(values["model"]["vocab"])
        merges = [
            pair if isinstance(pair, str) else " ".join(pair)
            for pair in values["model"]["merges"]
        ]
        added = {
            token["content"]: token["id"] for token in values["added_tokens"]
        }
        if "\u0120" not in vocab:  # a space as a byte-level BPE writes it
            return {}
        special = [
            token for token in tokenization.SPECIAL_TOKENS if token in added
        ]
        vocab.update((token, added[token]) for token in special)
        others = {t: i for t, i in added.items() if t not in vocab}
        contents = {
            VOCAB: files.json_bytes(vocab),
            MERGES: "\n".join(["#version: 0.2", *merges, ""]).encode("utf-8"),
            ADDED_TOKENS: files.json_bytes(others),
        }
    except (KeyError, TypeError, ValueError):
        return {}
    return {
        n: data for n, data in contents.items() if others or n != ADDED_TOKENS
    }


def warn_of_fast_tokenizer(content: bytes) -> None:
    """Warns of a tokenizer.json that gives other ids than this project.

    Args:
      content: its bytes. Normalizers besides lower-casing, and anything before
        the byte-level BPE but GPT-2's split into words, are not supported.
    """
    values = files.parse_json(content, TOKENIZER, "a tokenizer.json")
    others = [
        f"{name} {json.dumps(part)[:200]}"
        for name, kind in (
            ("normalizer", "Lowercase"),
            ("pre_tokenizer", "ByteLevel"),
        )
        for part in _steps(values.get(name), f"{name}s")
        if part.get("type") != kind or part.get("use_regex") is False
    ]
    if others:
        logging.warning(
            "%s: %s: not supported; texts get other ids than in transformers, "
            "so use this model only with ids that this project makes",
            TOKENIZER,
            ", ".join(others),
        )


def _steps(value, name):
    """The objects of a tokenizer.json's normalizer or pre_tokenizer."""
    if not isinstance(value, dict):
        return []
    steps = value.get(name) if value.get("type") == "Sequence" else [value]
    return (
        [s for s in steps if isinstance(s, dict)]
        if isinstance(steps, list)
        else []
    )


def check_tokenizer(
    tokenizer: TokenizerFiles, directory: str, allow_other: bool = False
) -> None:
    """Compares a tokenizer with the one in a directory.

    Args:
      tokenizer: of the texts or records of a run.
      directory: of a model; one without tokenizer files fits any.
      allow_other: --allow_other_tokenizer: warn instead of stopping.

    Raises:
      errors.UserError: the vocabulary, the merges or lower-casing differ.
    """
    check_same_files(tokenizer, directory, allow_other)
    vocab_file = os.path.join(directory, VOCAB)
    if files.is_file(vocab_file) and (
        tokenization.added_tokens(tokenizer.vocab_file)
        != tokenization.added_tokens(vocab_file)
    ):
        reject_tokenizer(
            f"{ADDED_TOKENS} beside {tokenizer.vocab_file} and in {directory} "
            "differ",
            allow_other,
        )
    for name, saved in (
        (TOKENIZER_CONFIG, lower_case(directory)),
        (RUN, _trained_with(directory).get("do_lower_case")),
    ):
        if saved not in (None, tokenizer.do_lower_case):
            reject_tokenizer(
                f"do_lower_case is {tokenizer.do_lower_case}, but "
                f"{os.path.join(directory, name)} has {saved}",
                allow_other,
            )


def check_same_files(
    tokenizer: TokenizerFiles, directory: str, allow_other: bool
) -> None:
    """`check_tokenizer` of the files alone, of which one may be "".

    Those in the directory are compared with its run.json too.
    """
    for path, name in zip(tokenizer, (VOCAB, MERGES)):
        beside = os.path.join(directory, name)
        if (
            path
            and files.is_file(beside)
            and not _have_same_content(path, beside)
        ):
            reject_tokenizer(f"{path}: not the same as {beside}", allow_other)
    trained = _trained_with(directory)
    for key, name in (("vocab_file", VOCAB), ("merges_file", MERGES)):
        beside = os.path.join(directory, name)
        if (
            key in trained
            and files.is_file(beside)
            and files.sha256(beside) != trained[key]
        ):
            reject_tokenizer(
                f"{beside}: not the file of training, whose SHA-256 is in "
                f"{os.path.join(directory, RUN)}",
                allow_other,
            )


def _trained_with(directory):
    """What run.json, where there is one, says of a run's data."""
    fixed = _read_json(os.path.join(directory, RUN)).get("fixed")
    return fixed if isinstance(fixed, dict) else {}


def _have_same_content(first, second):
    """Whether two files are the same vocabulary, or the same merges."""
    data, other = files.read_bytes(first), files.read_bytes(second)
    if data == other:
        return True
    if second.endswith(VOCAB):  # white space and order may differ
        return files.parse_json(data, first) == files.parse_json(other, second)
    return _merges(data) == _merges(other)


def _merges(content: bytes) -> typing.List[str]:
    lines = content.decode("utf-8", "replace").replace("\r", "").split("\n")
    return [line for line in lines if line and not line.startswith("#v")]


def reject_tokenizer(problem: str, allow_other: bool) -> None:
    """Stops at another tokenizer; with allow_other it warns."""
    if not allow_other:
        raise errors.UserError(
            f"{problem}; use the model's own tokenizer, or pass "
            "--allow_other_tokenizer=True"
        )
    logging.warning("%s; continuing (--allow_other_tokenizer)", problem)


def choose_lower_case(
    flag: typing.Optional[bool], directories: typing.Sequence[str]
) -> bool:
    """Whether text is lower-cased: the flag, else what a model says.

    Args:
      flag: --do_lower_case, None when it is not given.
      directories: of the model in use, most important first; "" is skipped.
    """
    if flag is not None:
        logging.info("do_lower_case=%s, from --do_lower_case", flag)
        return flag
    for directory in filter(None, directories):
        saved = lower_case(directory)
        if saved is not None:
            logging.info(
                "do_lower_case=%s, from %s",
                saved,
                os.path.join(directory, TOKENIZER_CONFIG),
            )
            return saved
    logging.info("do_lower_case=False, the default")
    return False


def check_same_models(directories: typing.Sequence[str]) -> None:
    """Rejects models to average whose config, tokenizer or task differ.

    Raises:
      errors.UserError: names the first file that differs.
    """
    first = directories[0]
    config = files.read_json(os.path.join(first, CONFIG))
    tokenizer = find_tokenizer(first)
    task = read_task(first).values()
    for directory in directories[1:]:
        path = os.path.join(directory, CONFIG)
        if files.read_json(path) != config:
            raise errors.UserError(
                f"{path}: differs from that of {first}; average checkpoints "
                "of one model"
            )
        if tokenizer:
            check_tokenizer(tokenizer, directory)
        other = read_task(directory).values()
        differences = task_differences(other, task)
        if task and other and differences:
            path = os.path.join(directory, TASK)
            raise errors.UserError(
                f"{path}: differs from that of {first}: {differences}; "
                "average checkpoints of one task"
            )
