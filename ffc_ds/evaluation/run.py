"""An evaluation from its settings to its folder of results."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from ffc_ds.data.bounds import check_max_megapixels
from ffc_ds.distributed import first_rank_first, join_launcher, rank, together
from ffc_ds.encoders.opening import open_encoder
from ffc_ds.errors import UserError
from ffc_ds.evaluation.ijb import read_ijb
from ffc_ds.evaluation.image_files import read_distractors, read_probes
from ffc_ds.evaluation.noises import leave_out_noises
from ffc_ds.evaluation.pair_lists import read_pairs
from ffc_ds.evaluation.protocols import Result, evaluate_ijb, identify_among, verify_sets
from ffc_ds.evaluation.results import write_results
from ffc_ds.evaluation.settings import EvaluationConfig
from ffc_ds.evaluation.templates import Embedder
from ffc_ds.files import written_aside


def evaluate(config: EvaluationConfig) -> list[Result]:
    """Evaluate, on all ranks of the launcher together or in this process alone, and write `config.output_dir`.

    Everything is read and checked before anything is embedded. Returns the results, the same on all ranks. Raises
    UserError for whatever cannot be used; nothing half-written stays behind.
    """
    device = join_launcher()
    with ExitStack() as stack:
        output = written_aside(Path(config.output_dir))
        folder = together(lambda: stack.enter_context(output) if rank() == 0 else None)
        protocols = together(lambda: _open(config))
        encoder = first_rank_first(lambda: open_encoder(config.model, config.onnx, device))
        results = _results(protocols, Embedder(encoder, config.batch_size, config.flip, True, config.max_megapixels))
        if folder is not None:
            folder.mkdir()
            write_results(config, results, folder)
    return results


def _open(config: EvaluationConfig) -> list[Callable[[Embedder], Result | list[Result]]]:
    """The protocols, with all that they need but the embedder."""
    if config.batch_size < 1:
        raise UserError(f"batch_size is {config.batch_size}; it must be 1 or more.")
    check_max_megapixels(config.max_megapixels)
    if (config.probes is None) != (config.distractors is None):
        raise UserError("identification takes both: give --probes and --distractors, or neither")
    protocols = [partial(verify_sets, pairs=read_pairs(path, config.images)) for path in config.pairs]
    for folder in config.ijb:
        ijb = read_ijb(folder, config.detector_score, config.feature_norm, config.max_megapixels)
        protocols.append(partial(evaluate_ijb, ijb=ijb))
    if config.probes is not None:
        probes, subjects = read_probes(config.probes)
        distractors = read_distractors(config.distractors)
        if config.noises:
            probes, subjects, distractors = leave_out_noises(config.noises, probes, subjects, distractors)
        protocols.append(partial(identify_among, probes=probes, subjects=subjects, distractors=distractors))
    elif config.noises:
        raise UserError("--noises are left out of --probes and --distractors: give these as well")
    if not protocols:
        raise UserError("there is nothing to evaluate on: give --pairs, --ijb, or --probes and --distractors")
    return protocols


def _results(protocols: list[Callable], embedder: Embedder) -> list[Result]:
    results = []
    for protocol in protocols:
        found = protocol(embedder)
        results += found if isinstance(found, list) else [found]
    return results
