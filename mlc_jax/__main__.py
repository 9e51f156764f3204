"""The command `mlc-jax`: corrects labels, predicts, lists settings, trains."""

import argparse
import functools
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mlc_jax import __version__, presets
from mlc_jax.errors import ExitCode, closed_pipes_forgiven, readable

_CORRECT = """\
Finds wrong labels in FILE and corrects them.

FILE is a table (.csv, .tsv, .jsonl, .parquet) with a column `label`, and columns of numbers, a
column of texts, or a column of paths of pictures; arrays (.npz); or a directory of pictures with a
sub-directory for each class. Some labels must be checked: a column `checked_label`, empty where
nobody looked. If there is none, the first call draws rows to check, and trains nothing.

The output is in FILE.mlc/ next to FILE: report.html, which you should read first; corrected.csv,
your file with a corrected label for each row; and to_check.csv, rows to check next. Fill that in,
save it in place and run the same command again: the next round learns from it.
"""
_CORRECT_END = """\
Any setting can be given: --dataset.features=age,city, --cross_fit.num_rounds=8.
`mlc-jax settings` lists them.

  mlc-jax correct all.csv
  mlc-jax correct reviews.csv --text=body --encoder=sentence-transformers/all-MiniLM-L6-v2
  mlc-jax correct photos/ --encoder=facebook/dinov2-small
  mlc-jax correct crowd.csv --label=anna,ben,carla
"""
_PREDICT = """\
Predicts the labels of new examples with a trained run.

RUN is the directory of a run that has ended, such as all.mlc or all.mlc/round_2. NEW is a file like
the one it was trained on, without labels. The output has a row for each example: id, label,
confidence, and the probability of each class.
"""
_SETTINGS = f"""\
Prints settings, with their defaults and what they mean.

WORD is part of a name or of a meaning (`mlc-jax settings drawn`), or a preset, to print its
page: {", ".join(presets.names()[:6])},
{", ".join(presets.names()[6:])}.
"""
_TRAIN = """\
Trains from a config, as `python -m mlc_jax.main` does: --config=PRESET_OR_FILE --workdir=DIR.
`mlc-jax train --help` lists all flags.
"""


class _Once(argparse.Action):
    """Stores a value; an option that is given twice is an error. argparse takes the last one."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
        option_string: str | None = None,
    ) -> None:  # fmt: skip
        if option_string and getattr(namespace, self.dest) != self.default:
            several = ", with commas between names" if "," in str(self.metavar) else ""
            parser.error(f"{option_string} is given twice; expected it once{several}")
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    """Reports errors in the same form as the other commands."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.register("action", None, _Once)

    def error(self, message: str) -> NoReturn:
        print(
            f"error: {readable(message)}\n`{self.prog} --help` lists all options.", file=sys.stderr
        )
        sys.exit(ExitCode.BAD_INPUT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code.

    Args:
      arguments: without the program's name; by default those of this process.
    """
    arguments = sys.argv[1:] if arguments is None else [*arguments]
    with closed_pipes_forgiven():
        if arguments[:1] == ["train"]:
            return _train(arguments[1:])
        typed, rest = _parser().parse_known_args(arguments)
        code: int = typed.run(typed, rest, arguments)
        return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mlc-jax",
        description="Finds wrong labels and corrects them, from a few checked ones.",
        epilog="`mlc-jax COMMAND --help` says more.",
    )
    parser.add_argument("--version", action="version", version=f"mlc-jax {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[..., int], text: str, end: str = "") -> _Parser:
        command: _Parser = commands.add_parser(
            name, help=text.splitlines()[0], description=text, epilog=end, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        command.set_defaults(run=run, parser=command)
        return command

    _add_correct(add("correct", _correct, _CORRECT, _CORRECT_END))
    predict = add("predict", _predict, _PREDICT)
    predict.add_argument("RUN", help="directory of a run")
    predict.add_argument("NEW", help="file or directory of examples")
    predict.add_argument("--output", default="", help="file to write; RUN/predictions/NEW.csv")
    predict.add_argument("--batch_size", type=int, default=1000, help="examples per batch")
    predict.add_argument("--noprogress", action="store_true", help="show no progress bar")
    settings = add("settings", _settings, _SETTINGS)
    settings.add_argument("WORD", nargs="?", default="", help="part of a name, or a preset")
    add("train", _unreachable, _TRAIN)
    return parser


def _add_correct(parser: argparse.ArgumentParser) -> None:
    # fmt: off
    parser.add_argument("FILE", help="table, arrays, or directory of pictures")
    columns = parser.add_argument_group("columns of a table")
    columns.add_argument(
        "--label",
        metavar="NAME[,NAME...]",
        default="",
        help="given labels, by one or several annotators; default: `label`, or `label_*`",
    )
    columns.add_argument(
        "--checked",
        metavar="NAME",
        default="",
        help="checked labels; default: `checked_label`",
    )
    columns.add_argument("--text", metavar="NAME", default="", help="texts; default: `text`")
    columns.add_argument(
        "--image", metavar="NAME", default="", help="paths of pictures; default: `path` or `image`"
    )
    columns.add_argument("--id", metavar="NAME", default="", help="names of rows; default: `id`")
    files = parser.add_argument_group("further files")
    files.add_argument(
        "--checks",
        metavar="FILE[,FILE...]",
        default=None,
        help="more checked labels: tables with columns id and checked_label",
    )
    files.add_argument(
        "--votes",
        metavar="FILE",
        default=None,
        help="labels by many annotators: a table with columns id, source and label",
    )
    files.add_argument(
        "--clean",
        metavar="DIR",
        default=None,
        help="of pictures: a directory whose sub-directories are the right classes",
    )
    files.add_argument(
        "--encoder",
        metavar="DIR_OR_NAME",
        default=None,
        help="of texts or pictures: a directory or a name on the Hugging Face hub; of pictures, "
        "weights of a ResNet-50, too",
    )
    files.add_argument(
        "--out",
        metavar="DIR",
        default="",
        help="output directory; default: next to FILE, its name with the ending .mlc",
    )
    parser.add_argument("--noprogress", action="store_true", help="show no progress bar")
    # fmt: on


def _correct(typed: argparse.Namespace, rest: Sequence[str], arguments: Sequence[str]) -> int:
    from mlc_jax import command_line
    from mlc_jax.commands import correct, overrides

    options = correct.Options(
        file=typed.FILE,
        label=tuple(overrides.listed(typed.label)),
        columns={"checked_label": typed.checked, "text": typed.text, "path": typed.image,
                 "id": typed.id},
        checks=typed.checks,
        votes=typed.votes,
        clean=typed.clean,
        encoder=typed.encoder,
        out=typed.out,
        again=shlex.join(["mlc-jax", *arguments]),
        progress=not typed.noprogress,
    )  # fmt: skip

    def run() -> int:
        settings, unknown = overrides.split(rest)
        if unknown:
            typed.parser.error(f"unknown: {' '.join(unknown)}")
        return correct.correct(options._replace(settings=tuple(settings)))

    return command_line.guarded(run, correct.told(options))


def _predict(typed: argparse.Namespace, rest: Sequence[str], _: Sequence[str]) -> int:
    from mlc_jax import command_line
    from mlc_jax.commands import predict

    if rest:
        typed.parser.error(f"unknown: {' '.join(rest)}")

    def run() -> None:
        predict.predict(
            typed.RUN, typed.NEW, typed.output, batch_size=typed.batch_size,
            progress=not typed.noprogress,
        )  # fmt: skip

    return command_line.guarded(run, lambda text: text.replace("workdir: ", "RUN: "))


def _settings(typed: argparse.Namespace, rest: Sequence[str], _: Sequence[str]) -> int:
    from mlc_jax import command_line, config

    if rest:
        typed.parser.error(f"unknown: {' '.join(rest)}")
    text = (
        presets.page(typed.WORD) if typed.WORD in presets.names() else config.describe(typed.WORD)
    )
    if not text:
        typed.parser.error(f"{typed.WORD!r} is not in the name or meaning of any setting")
    return command_line.guarded(lambda: print(text))


def _train(arguments: Sequence[str]) -> int:
    """`python -m mlc_jax.main`, which also takes presets by their names."""
    from absl import flags

    from mlc_jax import command_line
    from mlc_jax import main as program

    if {"-h", "--help", "-help"} & {*arguments}:
        print(f"{program.__doc__}\n{flags.FLAGS.module_help(program)}")
        return ExitCode.DONE
    sys.argv = [sys.argv[0], *map(_with_preset, _joined(arguments))]
    main_ = functools.partial(program.main, ["mlc-jax", "train", *arguments])
    command_line.run(main_, required=["config", "workdir"])
    raise AssertionError("absl ends the process")


def _joined(arguments: Sequence[str]) -> list[str]:
    """`--config NAME` as `--config=NAME`."""
    text = [*arguments]
    for place in [i for i, x in enumerate(text[:-1]) if x == "--config"]:
        text[place : place + 2] = [f"--config={text[place + 1]}"]
    return text


def _with_preset(argument: str) -> str:
    """--config=PRESET becomes the path of the preset's file."""
    flag, _, value = argument.partition("=")
    name, colon, kind = value.partition(":")
    if flag == "--config" and name.isidentifier() and name not in (*presets.names(), *os.listdir()):
        names = ", ".join(presets.names())
        print(f"error: --config: got {name!r}, expected a file, or a preset: {names}",
              file=sys.stderr)  # fmt: skip
        sys.exit(ExitCode.BAD_INPUT)
    if flag != "--config" or name not in presets.names():
        return argument
    return f"--config={presets.path(name)}{colon}{kind}"


def _unreachable(*_: object) -> int:
    raise AssertionError("`train` has flags of its own")


if __name__ == "__main__":
    sys.exit(main())
