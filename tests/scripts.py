"""The scripts of launch/ as modules."""

import importlib.util

from tests.launched import ROOT


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "launch" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
