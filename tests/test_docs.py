"""The commands in README.md and docs/ are ones that the scripts take, and links between the pages lead somewhere."""

import re
import shlex

import pytest

from tests.launched import ROOT
from tests.scripts import script

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(
    r"launch/(?!preemptible|phases)(\w+)\.py\s+(.*)"
)  # the one goes before another, the other reads a file
PLACEHOLDER = re.compile(r" \[[a-zA-Z-].*?\]| \.\.\.")  # [what may be left out], ...


def commands():
    for page in PAGES:
        for block in re.findall(r"^```\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                if found := COMMAND.search(line):
                    arguments = PLACEHOLDER.sub("", found[2])
                    if arguments.count("'") % 2:  # the end of what a shell is given to run
                        arguments = arguments.removesuffix("'")
                    yield pytest.param(found[1], arguments, id=f"{page.stem}: {found[0][:60]}")


def parsers():
    from ffc_ds.cleaning.settings import parse_settings as parse_cleaning
    from ffc_ds.config.settings import parse_config
    from ffc_ds.embedding_set.settings import parse_settings as parse_embedding
    from ffc_ds.evaluation.settings import parse_settings
    from ffc_ds.planning.settings import parse_settings as parse_plan

    by_script = {"train": parse_config, "doctor": parse_config, "evaluate": parse_settings, "plan": parse_plan}
    by_script |= {"embed": parse_embedding, "clean": parse_cleaning}
    return by_script | {name: script(name).parser().parse_args for name in ("prepare_data", "export", "benchmark")}


@pytest.mark.parametrize(("name", "arguments"), list(commands()))
def test_commands_are_understood(name, arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    if "--help" not in arguments:
        parsers()[name](shlex.split(arguments, comments=True))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target
