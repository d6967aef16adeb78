"""What is installed: whether it is the same everywhere, goes together, and goes with the device."""

import platform
import re
from importlib import metadata

import torch
from packaging.requirements import InvalidRequirement, Requirement

from ffc_ds.doctor.case import Case
from ffc_ds.doctor.finding import Finding
from ffc_ds.training.report import versions

OUR_NAME = "ffc_ds"


def measure_versions(case: Case) -> dict:
    found = versions()
    del found["device"]
    found["system"] = platform.release()
    trouble = conflicts(OUR_NAME)
    if case.device.type == "cuda":
        found |= {"cuda": torch.version.cuda, "nccl": ".".join(map(str, torch.cuda.nccl.version()))}
        trouble += _device_trouble(case)
    return {"versions": found, "conflicts": trouble}


def judge_versions(case: Case, found: list[dict]) -> Finding:
    measured = ", ".join(f"{name} {version}" for name, version in found[0]["versions"].items())
    for rank, each in enumerate(found):
        other = {name: version for name, version in each["versions"].items() if version != found[0]["versions"][name]}
        if other.keys() - {"system"}:
            differ = ", ".join(f"{name} {version}" for name, version in other.items())
            advice = "give all hosts the same environment: pip install -c constraints.txt -e . on each"
            return Finding("problem", f"{case.name(rank)} has {differ}; rank 0 has {measured}", advice)
    if trouble := list(dict.fromkeys(text for each in found for text in each["conflicts"])):
        advice = "pip install -c constraints.txt -e . brings versions that go together"
        return Finding("problem", f"{'; '.join(trouble)}. {measured}", advice)
    return Finding("ok", measured)


def conflicts(package: str) -> list[str]:
    """What a package, or what it needs, asks for and does not find, each in a few words; nothing of optional parts."""
    found, seen, pending = [], set(), [package]
    while pending:
        name = pending.pop()
        for text in _requirements(name):
            try:
                needs = Requirement(text)
            except InvalidRequirement:
                continue
            if needs.marker and not needs.marker.evaluate({"extra": ""}):
                continue
            version = _version(needs.name)
            if version is None:
                found.append(f"{name} needs {needs.name}, which is not installed")
            elif not needs.specifier.contains(version, prereleases=True):
                found.append(f"{name} needs {needs.name}{needs.specifier}, but there is {version}")
            if version is not None and (key := _normal(needs.name)) not in seen:
                seen.add(key)
                pending.append(needs.name)
    return found


def _requirements(name: str) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _device_trouble(case: Case) -> list[str]:
    major, minor = torch.cuda.get_device_capability(case.device)
    built, trouble = torch.cuda.get_arch_list(), []
    if built and not any(_runs(arch, major, minor) for arch in built):
        trouble.append(f"torch was built for {', '.join(built)}, and the GPU is an sm_{major}{minor}")
    if "settings" in case.heard and case.settings.dtype == "bf16" and major < 8:
        trouble.append("the GPU does not compute in bf16 (ds_configs/fp16.json does)")
    return trouble


def _runs(built_for: str, major: int, minor: int) -> bool:
    """Whether code for sm_NN, or compute_NN, which is translated for later GPUs, runs on one of that capability."""
    kind, _, number = built_for.rstrip("af").partition("_")
    oldest = divmod(int(number), 10)
    return oldest <= (major, minor) and (kind == "compute" or oldest[0] == major)
