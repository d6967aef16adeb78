"""All checks, one after another, on all ranks at once; what one cannot do is its finding, not the end."""

import json
import sys
from collections.abc import Callable

import torch

from ffc_ds.config.settings import Config
from ffc_ds.distributed import rank
from ffc_ds.doctor.case import Case, Check, Unmeasured
from ffc_ds.doctor.collectives import (
    judge_collective,
    judge_step,
    measure_features,
    measure_gradients,
    measure_softmax,
)
from ffc_ds.doctor.compute import judge_matrices, measure_matrices
from ffc_ds.doctor.data_path import judge_data, judge_workers, measure_data
from ffc_ds.doctor.finding import Finding, table
from ffc_ds.doctor.limits import (
    judge_files,
    judge_memory,
    judge_shared_memory,
    measure_files,
    measure_memory,
    measure_shared_memory,
)
from ffc_ds.doctor.meeting import Meeting
from ffc_ds.doctor.output_folder import judge_checkpoints, judge_folder, measure_folder
from ffc_ds.doctor.ranks import judge_clocks, judge_ranks, measure_clock, measure_rank
from ffc_ds.doctor.settings import judge_settings, measure_settings
from ffc_ds.doctor.versions import judge_versions, measure_versions
from ffc_ds.errors import UserError
from ffc_ds.progress import progress


def _nothing(case: Case) -> None:
    """For checks of what others have measured."""


CHECKS = (
    Check("ranks", measure_rank, judge_ranks),
    Check("settings", measure_settings, judge_settings),
    Check("versions", measure_versions, judge_versions),
    Check("clocks", measure_clock, judge_clocks),
    Check("matrices", measure_matrices, judge_matrices),
    Check("all-gather", measure_features, judge_collective),
    Check("all-reduce", measure_gradients, judge_collective),
    Check("softmax", measure_softmax, judge_collective),
    Check("output_dir", measure_folder, judge_folder),
    Check("data", measure_data, judge_data, seconds=600.0),  # the first opening makes a copy
    Check("workers", _nothing, judge_workers),
    Check("step", _nothing, judge_step),
    Check("checkpoints", _nothing, judge_checkpoints),
    Check("memory", measure_memory, judge_memory),
    Check("/dev/shm", measure_shared_memory, judge_shared_memory),
    Check("open files", measure_files, judge_files),
)


def examine(config: Config, device: torch.device) -> dict[str, Finding]:
    """The findings by the names of the checks, the same on all ranks. After `init_distributed`.

    A check that is not over in its time ends the program with exit code 2, after the table so far.
    """
    case, findings, meeting = Case(config, device), {}, Meeting()
    bar = progress(CHECKS, desc="doctor", unit="checks", leave=False, shown=rank() == 0)
    for check in bar:
        bar.set_postfix({"at": check.name})

        def give_up(reason: str, name: str = check.name) -> None:
            advice = "look at these ranks' hosts, and whether all reach each other (NCCL_DEBUG=INFO, *_SOCKET_IFNAME)"
            print(f"\n{table(findings | {name: Finding('problem', reason, advice)})}")
            print(f"\nerror: the check {name!r} did not end; what comes after it was not looked at", file=sys.stderr)

        with meeting.within(check.seconds, check.name, give_up):
            told = meeting.hear(check.name, _attempt(lambda check=check: json.dumps(check.measure(case))))
        failures = {number: Finding(*failure) for number, (_, failure) in enumerate(told) if failure is not None}
        if failures:
            findings[check.name] = _failed(case, failures, len(told))
            continue
        case.heard[check.name] = values = [json.loads(value) for value, _ in told]
        finding, failure = _attempt(lambda check=check, values=values: check.judge(case, values))
        findings[check.name] = finding or failure
    meeting.part()
    return findings


def _attempt(action: Callable) -> tuple:
    """What `action` returns, or the finding that it cannot."""
    try:
        return action(), None
    except Unmeasured as error:
        return None, Finding("warning", str(error))
    except UserError as error:
        return None, Finding("problem", str(error))
    except Exception as error:  # whatever a library raises; the other checks go on
        reason = " ".join(str(error).split())
        return None, Finding("problem", f"this could not be measured: {type(error).__name__}: {reason:.500}")


def _failed(case: Case, failures: dict[int, Finding], ranks: int) -> Finding:
    texts = {}
    for number, failure in failures.items():
        texts.setdefault(failure.measured, []).append(case.name(number))
    said = [text if len(names) == ranks else f"{', '.join(names)}: {text}" for text, names in texts.items()]
    state = "problem" if any(failure.state == "problem" for failure in failures.values()) else "warning"
    return Finding(state, "; ".join(said))
