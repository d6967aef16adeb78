"""Bring a dataset into parquet files, look at one, clean it, upload it.

python launch/prepare_data.py recordio ms1m-retinaface-t1 data/ms1mv3
python launch/prepare_data.py imagefolder faces data/faces --on_error stop --check full
python launch/prepare_data.py lmdb train_lmdb train_keys.txt data/train
python launch/prepare_data.py webdataset gaunernst/ms1mv3-wds data/ms1mv3
python launch/prepare_data.py inspect data/ms1mv3
python launch/prepare_data.py inspect OWNER/NAME --image_column photo --label_column person
python launch/prepare_data.py apply data/ms1mv3 out/proposals/proposals.parquet data/cleaned
python launch/prepare_data.py push data/ms1mv3 OWNER/NAME
"""

import inspect
import sys

from jsonargparse import ArgumentParser

from ffc_ds.config.command_line import make_parser, read_command, with_underscores
from ffc_ds.data.importers.cleaned import plan_cleaned
from ffc_ds.data.importers.hub import push
from ffc_ds.data.importers.imagefolder import plan_imagefolder
from ffc_ds.data.importers.inspection import inspect as inspect_folder
from ffc_ds.data.importers.lmdb import plan_lmdb
from ffc_ds.data.importers.recordio import plan_recordio
from ffc_ds.data.importers.shards import write_shards
from ffc_ds.data.importers.webdataset import plan_webdataset
from ffc_ds.errors import UserError
from ffc_ds.launching import run_for_user

SOURCES = {
    "recordio": plan_recordio,
    "imagefolder": plan_imagefolder,
    "lmdb": plan_lmdb,
    "webdataset": plan_webdataset,
    "apply": plan_cleaned,
}
TOOLS = {"inspect": inspect_folder, "push": push}


def main(arguments: list[str]) -> None:
    command, chosen = read_command(parser(), with_underscores(arguments))
    if command in TOOLS:
        TOOLS[command](**chosen)
    else:
        plan = SOURCES[command]
        about = {name: chosen.pop(name) for name in inspect.signature(plan).parameters}
        try:
            planned = plan(**about)
        except OSError as error:
            raise UserError(f"{about['source']} cannot be read ({error}): see to its rights, or copy it") from error
        write_shards(planned, **chosen)


def parser() -> ArgumentParser:
    parser = make_parser("Bring a dataset into parquet files.")
    commands = parser.add_subcommands()
    for name, function in (SOURCES | TOOLS).items():
        command = make_parser(function.__doc__.partition("\n")[0])
        command.add_function_arguments(function, as_positional=True)
        if name in SOURCES:
            command.add_function_arguments(write_shards, as_positional=True, skip={"plan"})
        commands.add_subcommand(name, command, help=command.description)
    return parser


if __name__ == "__main__":
    run_for_user(lambda: main(sys.argv[1:]), "the same command goes on")
