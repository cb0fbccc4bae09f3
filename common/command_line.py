# SPDX-License-Identifier: Apache-2.0
"""Config classes as command-line flags, and flags as config objects.

A field of a frozen dataclass is one flag, one default and one help text:

    @dataclasses.dataclass(frozen=True)
    class RunConfig:
        train_batch_size: int = command_line.flag(32, "Sequences a device.")

    command_line.define(RunConfig, train_batch_size=48)   # before app.run
    run = command_line.build(RunConfig, flags.FLAGS)      # in main
    command_line.run(main)                                # instead of app.run

A user's mistake, be it in a flag or raised as `errors.UserError` or `OSError`,
ends the process with one line on standard error and exit code 1.
"""

import dataclasses
import os
import signal
import sys

from absl import app, flags, logging

from common import errors

_TRUE = ("true", "t", "1", "yes", "y")
_FALSE = ("false", "f", "0", "no", "n")
_LARGEST = 2**31 - 1


def flag(default, help_text, *, choices=None, lower=None, upper=None):
    """A dataclass field that is also a flag.

    Args:
      default: bool, int, float, str or None; its type is the flag's type, and
        None takes the type of the annotation in `typing.Optional`.
      help_text: one or two sentences.
      choices: allowed strings, or None.
      lower: smallest allowed number, or None.
      upper: largest allowed number, or None.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": help_text,
            "choices": choices,
            "lower": lower,
            "upper": upper,
        },
    )


class _Parser(flags.ArgumentParser):
    """Parses one value; an empty one means the default, whatever the type."""

    def __init__(self, kind, default, metadata):
        self._kind = kind
        self._default = default
        self._metadata = metadata
        self.syntactic_help = _expected(kind, metadata)

    def parse(self, argument):
        if argument is None:
            return None
        if argument == "":
            return self._default
        value = self._convert(argument)
        self._check(value)
        return value

    def _convert(self, argument):
        if self._kind is bool:
            if str(argument).lower() in _TRUE + _FALSE:
                return str(argument).lower() in _TRUE
            raise ValueError("expected " + self.syntactic_help)
        try:
            return self._kind(argument)
        except ValueError:
            raise ValueError("expected " + self.syntactic_help) from None

    def _check(self, value):
        if self._kind in (int, float):
            self._check_size(value)
        elif self._kind is str and "\0" in value:
            raise ValueError("expected a text without a zero byte")
        choices = self._metadata["choices"]
        lower, upper = self._metadata["lower"], self._metadata["upper"]
        if choices is not None and value not in choices:
            raise ValueError("expected " + self.syntactic_help)
        # `not >=` instead of `<`, so that nan is refused too.
        if (lower is not None and not value >= lower) or (
            upper is not None and not value <= upper
        ):
            raise ValueError("expected " + self.syntactic_help)

    def _check_size(self, value):
        # Nothing here counts further, and TensorFlow's int32 cannot.
        if (
            self._kind is int
            and self._metadata["upper"] is None
            and abs(value) > _LARGEST
        ):
            raise ValueError(
                f"expected {self.syntactic_help}, at most {_LARGEST}"
            )
        has_bounds = (
            self._metadata["lower"] is not None
            or self._metadata["upper"] is not None
        )
        is_infinite = value in (float("inf"), -float("inf"))
        if value != value or has_bounds and is_infinite:
            raise ValueError("expected " + self.syntactic_help)

    def flag_type(self):
        return self._kind.__name__


def _expected(kind, metadata):
    """The words after "expected" in a message: "a whole number >= 1"."""
    if metadata["choices"] is not None:
        return "one of " + ", ".join(repr(c) for c in metadata["choices"])
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
    }[kind]
    lower, upper = metadata["lower"], metadata["upper"]
    if lower is not None and upper is not None:
        return f"{words} from {lower} to {upper}"
    if lower is not None:
        return f"{words} >= {lower}"
    if upper is not None:
        return f"{words} <= {upper}"
    return words


def _kind(field):
    """bool, int, float or str of a dataclass field."""
    if field.default is not None:
        return type(field.default)
    # typing.Optional[int] is Union[int, None].
    return next(t for t in field.type.__args__ if t is not type(None))


def define(config_class, **defaults):
    """Declares a flag for every field of a config class.

    Args:
      config_class: a dataclass whose fields come from `flag`.
      **defaults: fields that have another default in this script.

    Raises:
      TypeError: a name in `defaults` is not a field.
    """
    fields = {f.name: f for f in dataclasses.fields(config_class)}
    for name in defaults:
        if name not in fields:
            raise TypeError(f"{config_class.__name__} has no field {name!r}")
    script = sys.argv[0]  # --help lists the flags of this "module" alone
    for name, field in fields.items():
        default = defaults.get(name, field.default)
        kind = _kind(field)
        parser = _Parser(kind, default, field.metadata)
        if kind is bool:
            flags.DEFINE_flag(
                _BooleanFlag(parser, name, default, field.metadata["help"]),
                module_name=script,
            )
        else:
            flags.DEFINE(
                parser,
                name,
                default,
                field.metadata["help"],
                serializer=flags.ArgumentSerializer(),
                module_name=script,
            )


class _BooleanFlag(flags.Flag):
    """`--name`, `--noname`, `--name=value` and an empty `--name=`."""

    def __init__(self, parser, name, default, help_text):
        super().__init__(
            parser,
            flags.ArgumentSerializer(),
            name,
            default,
            help_text,
            boolean=True,
        )


def build(config_class, flag_values):
    """A config object from parsed flags.

    Raises:
      errors.UserError: the values do not go together (`__post_init__`).
    """
    return config_class(
        **{
            f.name: getattr(flag_values, f.name)
            for f in dataclasses.fields(config_class)
        }
    )


def fail(message):
    """Ends the process: one line on standard error, exit code 1."""
    sys.stdout.flush()
    sys.stderr.write(
        f"{os.path.basename(sys.argv[0])}: error: "
        f"{errors.shortened(' '.join(str(message).split()))}\n"
    )
    sys.stderr.flush()
    sys.exit(1)


def describe_os_error(error):
    """`cannot use 'corpus.txt': No such file or directory`."""
    if error.filename is None:
        return error.strerror or str(error)
    return f"cannot use {error.filename!r}: {error.strerror}"


def _parse(argv):
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        return fail(f"{error}; --help lists the flags")
    except UnicodeDecodeError as error:
        return fail(
            f"a --flagfile is not UTF-8 ({error}); write it as plain text, a "
            "flag a line"
        )
    except (OSError, ValueError, RecursionError) as error:
        # absl's own way through a flagfile, or to the name that was meant.
        return fail(
            f"the flags cannot be read ({error}); write --name=value, in a "
            "--flagfile one a line"
        )


def _refuse_arguments(arguments):
    """Refuses words that are no flags, such as the last of `--flag word`."""
    if not arguments:
        return
    switch = arguments[0].lower() in _TRUE + _FALSE
    raise errors.UserError(
        "%r is no flag; expected --name=value%s; --help lists the flags"
        % (
            arguments[0],
            f", such as --do_train={arguments[0]} with no blank before it"
            if switch
            else "",
        )
    )


def run(main, takes_arguments=False):
    """Parses the flags and calls `main(arguments)`, as absl's `app.run`.

    `errors.UserError` and `OSError` become one line and exit code 1.

    Args:
      main: function of the arguments, the script's name among them.
      takes_arguments: whether there may be some besides flags; what is
        passed over unread may have been meant as the value of a flag.
    """

    def guarded(argv):
        try:
            if not takes_arguments:
                _refuse_arguments(argv[1:])
            result = main(argv)
            sys.stdout.flush()
            return result
        except errors.UserError as error:
            return fail(error)
        except KeyboardInterrupt:
            sys.stderr.write(f"{os.path.basename(sys.argv[0])}: interrupted\n")
            return sys.exit(128 + signal.SIGINT)
        except BrokenPipeError:  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return sys.exit(128 + signal.SIGPIPE)
        except OSError as error:
            logging.debug("traceback", exc_info=True)
            return fail(describe_os_error(error))

    logging.use_absl_handler()
    app.run(guarded, flags_parser=_parse)
