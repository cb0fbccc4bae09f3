# SPDX-License-Identifier: Apache-2.0
"""Config classes as command-line flags, and flags as config objects.

A field of a frozen dataclass is one flag, one default and one help text:

    @dataclasses.dataclass(frozen=True)
    class RunConfig:
        train_batch_size: int = command_line.flag(32, "Sequences per device.")

    def define_flags():
        command_line.define(RunConfig, train_batch_size=48)

    def main(_):
        run = command_line.build(RunConfig, flags.FLAGS)

    if __name__ == "__main__":
        define_flags()
        command_line.run(main)

A user's mistake, in a flag or raised as `errors.UserError` or `OSError`, ends
the process with one line on standard error and exit code 1.
"""

import dataclasses
import os
import signal
import sys
import typing

from absl import app, flags, logging

from common import errors, log_format, startup, version

_BOOLEANS = {
    **dict.fromkeys(("true", "t", "1", "yes", "y"), True),
    **dict.fromkeys(("false", "f", "0", "no", "n"), False),
}
# The groups of --help, in this order.
FIRST = "what you need first"
DATA = "data"
MODEL = "model"
TRAINING = "training"
PREDICTION = "prediction"
DEVICES = "devices and precision"
NPU = "NPU"
OTHER = "options"
_GROUPS = (FIRST, DATA, MODEL, TRAINING, PREDICTION, DEVICES, NPU, OTHER)
_HELP = {"-h", "-help", "--help", "-?", "--helpshort"}
# No count of the suite is larger, and TensorFlow's int32 ends here.
_MAX_INT = 2**31 - 1
_Number = typing.Union[int, float]
_Config = typing.TypeVar("_Config")


# --- Flags ------------------------------------------------------------------


def flag(
    default: typing.Any,
    help_text: str,
    *,
    choices: typing.Optional[typing.Sequence[str]] = None,
    lower: typing.Optional[_Number] = None,
    upper: typing.Optional[_Number] = None,
    group: str = "",
) -> typing.Any:
    """A dataclass field that is also a flag.

    Args:
      default: bool, int, float, str or None; its type is the flag's type, and
        None takes the type of the annotation in `typing.Optional`.
      help_text: one or two sentences.
      choices: allowed strings, or None.
      lower: smallest allowed number, or None.
      upper: largest allowed number where there is a smallest, or None.
      group: of --help, for this field and those after it; "" is that of the
        field before it, OTHER before any.
    """
    return dataclasses.field(
        default=default,
        metadata=dict(
            help=help_text,
            choices=choices,
            lower=lower,
            upper=upper,
            group=group,
        ),
    )


class _Parser(flags.ArgumentParser):
    """Parses the value of a field; an empty one means the default."""

    def __init__(self, field: dataclasses.Field, default: typing.Any):
        self.kind: type = (
            # typing.Optional[int] is Union[int, None].
            field.type.__args__[0]  # type: ignore[union-attr]
            if field.default is None
            else type(field.default)
        )
        self._default = default
        self._choices = field.metadata["choices"]
        self._lower = field.metadata["lower"]
        self._upper = field.metadata["upper"]
        if self.kind is int:
            self._lower = -_MAX_INT if self._lower is None else self._lower
            self._upper = _MAX_INT if self._upper is None else self._upper
        # --help shows what the default and the name do not.
        obvious = self.kind in (bool, str) and self._choices is None
        self.syntactic_help = "" if obvious else self._expected()

    def _expected(self) -> str:
        """The words after "expected" in a message: "a number >= 1"."""
        if self._choices is not None:
            return "one of " + ", ".join(map(repr, self._choices))
        words = {
            bool: "true or false",
            int: "a whole number",
            float: "a number",
            str: "a text without a zero byte",
        }[self.kind]
        if self._upper is not None:
            return f"{words} from {self._lower} to {self._upper}"
        return words if self._lower is None else f"{words} >= {self._lower}"

    def parse(self, argument: typing.Any) -> typing.Any:
        if argument == "":
            return self._default
        try:
            value = (
                _BOOLEANS[str(argument).lower()]
                if self.kind is bool
                else self.kind(argument)
            )
        except (KeyError, ValueError):
            raise ValueError("expected " + self._expected()) from None
        if not self._is_allowed(value):
            raise ValueError("expected " + self._expected())
        return value

    def _is_allowed(self, value: typing.Any) -> bool:
        if self._choices is not None:
            return value in self._choices
        if self.kind is str:
            return "\0" not in value
        if self._lower is None:
            return value == value  # not nan
        upper = sys.float_info.max if self._upper is None else self._upper
        return self._lower <= value <= upper


def define(config_class: type, *declared: str, **defaults: typing.Any) -> None:
    """Declares a flag for every field of a config class.

    Args:
      config_class: a dataclass whose fields come from `flag`.
      *declared: fields whose flags another class of the script declares.
      **defaults: fields that have another default in this script.

    Raises:
      TypeError: a name in `defaults` is not a field.
    """
    fields = dataclasses.fields(config_class)
    unknown = set(defaults) - {field.name for field in fields}
    if unknown:
        raise TypeError(f"{config_class.__name__} has no field {unknown}")
    group = OTHER
    for field in fields:
        group = field.metadata["group"] or group
        if field.name in declared:
            continue
        default = defaults.get(field.name, field.default)
        parser = _Parser(field, default)
        item = flags.Flag(
            parser,
            flags.ArgumentSerializer(),
            field.name,
            default,
            field.metadata["help"],
            boolean=parser.kind is bool,
        )
        item.default_as_str = item.default_as_str if default != "" else None
        flags.DEFINE_flag(item, module_name=group)


def build(
    config_class: typing.Callable[..., _Config], flag_values: flags.FlagValues
) -> _Config:
    """A config object from parsed flags.

    Raises:
      errors.UserError: values that contradict each other (`__post_init__`).
    """
    fields = dataclasses.fields(config_class)  # type: ignore[arg-type]
    return config_class(**{f.name: flag_values[f.name].value for f in fields})


# --- Programs ---------------------------------------------------------------


def fail(message: typing.Any) -> typing.NoReturn:
    """Ends the process: one line on standard error, exit code 1."""
    text = errors.shortened(" ".join(str(message).split()))
    sys.stdout.flush()
    sys.stderr.write(f"{os.path.basename(sys.argv[0])}: error: {text}\n")
    sys.stderr.flush()
    sys.exit(1)


def end_at_closed_pipe() -> typing.NoReturn:
    """Ends the process when the reader of its output, as `head`, has ended."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + signal.SIGPIPE)


def _help() -> str:
    """The program's docstring and its flags by group."""
    text = sys.modules["__main__"].__doc__ or ""
    groups = filter(None, map(flags.FLAGS.module_help, _GROUPS))
    return "\n".join([text.strip(), *groups, ""])


def _parse(argv: typing.List[str]) -> typing.List[str]:
    try:
        try:
            if not _HELP.isdisjoint(argv[1:]):
                sys.stdout.write(_help())
                sys.exit(0)
            return flags.FLAGS(argv)
        finally:
            sys.stdout.flush()  # of --help
    except BrokenPipeError:
        end_at_closed_pipe()
    except flags.Error as error:
        fail(f"{error}; --help lists the flags")
    except UnicodeDecodeError as error:
        fail(
            f"--flagfile: not UTF-8 ({error}); write it as plain text, one "
            "flag per line"
        )
    except (OSError, ValueError, RecursionError) as error:
        # absl reads flag files and suggests similar names by recursion.
        fail(
            f"cannot read the flags ({error}); write --name=value, one per "
            "line in a --flagfile"
        )


def _reject_argument(word: str) -> None:
    """Rejects a word that is not a flag, as the last one of `--flag word`."""
    hint = ""
    if word.lower() in _BOOLEANS:
        hint = f", such as --do_train={word} without a space before {word}"
    raise errors.UserError(
        f"{word!r} is not a flag; expected --name=value{hint}; --help lists "
        "the flags"
    )


def run(
    main: typing.Callable[[typing.List[str]], typing.Any],
    takes_arguments: bool = False,
    after_interrupt: str = "",
) -> None:
    """Parses the flags and calls `main(arguments)`, as absl's `app.run`.

    `errors.UserError`, `OSError` and `MemoryError` become one line and exit
    code 1, a signal one line and 128 + its number. --version prints the
    version.

    Args:
      main: function of the arguments, the script's name first.
      takes_arguments: whether arguments besides flags are allowed; an ignored
        one may have been meant as the value of a flag.
      after_interrupt: what the user does next, for that line.
    """

    def guarded(argv):
        startup.finish()
        try:
            if flags.FLAGS["version"].value:
                sys.stdout.write(version.VERSION + "\n")
                sys.exit(0)
            if argv[1:] and not takes_arguments:
                _reject_argument(argv[1])
            result = main(argv)
            sys.stdout.flush()
            return result
        except errors.UserError as error:
            fail(error)
        except BrokenPipeError:
            end_at_closed_pipe()
        except MemoryError:
            logging.debug("traceback", exc_info=True)
            fail(
                "not enough memory; raise the limit (ulimit -v), end other "
                "programs, or choose smaller batches"
            )
        except OSError as error:
            logging.debug("traceback", exc_info=True)
            fail(errors.describe_os_error(error))
        except (KeyboardInterrupt, Exception) as error:
            startup.end_interrupted(error, after_interrupt)
        finally:
            startup.ignore_signals()

    flags.DEFINE_bool("version", False, "Print the version.", module_name=OTHER)
    logging.use_absl_handler()
    logging.get_absl_handler().setFormatter(log_format.Formatter())
    app.run(guarded, flags_parser=_parse)
