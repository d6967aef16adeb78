"""Compare: the whole training step, the cost of the heads, what they learn and how soon, the data path.

python launch/benchmark.py heads [--sizes 1e4 1e5 1e6] [--ranks 1 2] [--dtype bfloat16] [--device cuda]
python launch/benchmark.py heads --sizes 1e6 1e7 1e8 --ranks 1 --heads ffc --pools 1e5
python launch/benchmark.py step [--sizes 1e4 1e5 1e6] [--ranks 1 2] [--dtype bfloat16] [--compile on]
python launch/benchmark.py messages
python launch/benchmark.py accuracy [--recipe launch/comparisons/accuracy_lfw.yaml --settings data.train=PATH ...]
python launch/benchmark.py race
python launch/benchmark.py loader [--data PATH] [--workers 1 2]
python launch/benchmark.py opening [--images 1e6 1e8]
"""

import inspect
import sys
from typing import get_args, get_origin

import docstring_parser
from jsonargparse import ArgumentParser

from ffc_ds.config.command_line import make_parser, read_command
from ffc_ds.launching import run_for_user


def main(arguments: list[str]) -> None:
    command, chosen = read_command(parser(), arguments)
    commands()[command](**chosen)


def commands() -> dict:
    # Not at the top: the processes whose memory is measured read this file too.
    from ffc_ds.benchmark.accuracy import run_accuracy
    from ffc_ds.benchmark.heads import run_heads
    from ffc_ds.benchmark.loader import run_loader
    from ffc_ds.benchmark.messages import run_messages
    from ffc_ds.benchmark.opening import run_opening
    from ffc_ds.benchmark.race import run_race
    from ffc_ds.benchmark.step import run_step

    found = {"step": run_step, "heads": run_heads, "messages": run_messages, "accuracy": run_accuracy, "race": run_race}
    return found | {"loader": run_loader, "opening": run_opening}


def parser() -> ArgumentParser:
    parser = make_parser("Measure, and write tables and figures.")
    subcommands = parser.add_subcommands()
    for name, function in commands().items():
        about = docstring_parser.parse_from_object(function)
        helps = {each.arg_name: each.description for each in about.params}
        command = make_parser(about.short_description)
        parameters = inspect.signature(function).parameters.values()
        special = [each for each in parameters if each.annotation is bool or get_origin(each.annotation) is tuple]
        command.add_function_arguments(function, skip={each.name for each in special})
        for each in special:
            form = {"action": "store_true"}
            if each.annotation is not bool:  # a tuple, written as several values
                form = {"nargs": "+", "type": get_args(each.annotation)[0], "default": list(each.default)}
            command.add_argument(f"--{each.name}", help=helps[each.name], **form)
        subcommands.add_subcommand(name, command, help=about.short_description)
    return parser


if __name__ == "__main__":
    run_for_user(lambda: main(sys.argv[1:]))
