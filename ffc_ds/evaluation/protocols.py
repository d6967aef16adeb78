"""The field's protocols, each a function: embed what was read, score it, return a `Result`."""

from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np

from ffc_ds.evaluation.identification import identify, mate_pairs
from ffc_ds.evaluation.ijb import IJB, SubjectTemplates
from ffc_ds.evaluation.image_files import ImageFiles
from ffc_ds.evaluation.pair_lists import TemplatePairs
from ffc_ds.evaluation.scores import accept_rates, area_under_roc, histogram, pair_scores, roc
from ffc_ds.evaluation.search import search, search_joined
from ffc_ds.evaluation.templates import Embedder, Templates
from ffc_ds.evaluation.verification import verify_pairs

HARDEST, PICTURE = 6, 112


@dataclass(frozen=True, eq=False)
class Result:
    """What a protocol yields."""

    protocol: str
    """Of which kind it is."""
    name: str
    """The data's name."""
    numbers: dict[str, Any]
    """Numbers, and dictionaries of them by rate or rank, ready for JSON; None where the data cannot resolve a rate."""
    roc: tuple[np.ndarray, np.ndarray] | None = None
    """False and true accept rates of the ROC curve, ascending."""
    histogram: dict[str, np.ndarray] = field(default_factory=dict)
    """Counts of scores over `scores.BINS` for each kind of pair."""
    hardest: dict[str, list[tuple[np.ndarray, float]]] = field(default_factory=dict)
    """Genuine pairs of the lowest, impostor pairs of the highest scores: pictures (uint8 [112, 224, 3]) and score."""


def verify_sets(embedder: Embedder, pairs: TemplatePairs) -> Result:
    """Pair verification by folds (LFW and its kin), of images or, in YTF, of the averages of videos."""
    features = embedder.templates(pairs.templates)
    found = verify_pairs(features[pairs.left], features[pairs.right], pairs.same, pairs.folds)
    scores = pair_scores(features, pairs.left, pairs.right)
    kinds = {"genuine": histogram(scores[pairs.same]), "impostor": histogram(scores[~pairs.same])}
    hardest = _hardest(embedder, scores, pairs.same, pairs.left, pairs.right, pairs.templates)
    return Result(
        "pair verification", pairs.templates.images.name, found.to_dict(), (found.fpr, found.tpr), kinds, hardest
    )


def evaluate_ijb(embedder: Embedder, ijb: IJB) -> list[Result]:
    """IJB-B or IJB-C: 1:1 over the listed pairs of templates and 1:N in each gallery, as far as there are files.

    A TAR is given at the most false accepts that its FAR allows; InsightFace's `ijb_11.py` takes the point of the curve
    whose FAR is nearest, above or below. Its 1:N figures are those of the galleries joined.
    """
    features = embedder.templates(ijb.templates)
    results = [] if ijb.same is None else [_verify_templates(embedder, features, ijb)]
    if ijb.probes is not None:
        results += _search_templates(features, ijb)
    return results


def _verify_templates(embedder: Embedder, features: np.ndarray, ijb: IJB) -> Result:
    scores = pair_scores(features, ijb.left, ijb.right)
    genuine, impostor = scores[ijb.same], np.sort(scores[~ijb.same])
    numbers = {
        "tar_at_far": accept_rates(genuine, impostor[::-1], len(impostor)),
        "auc": area_under_roc(genuine, impostor),
        "genuine_pairs": len(genuine),
        "impostor_pairs": len(impostor),
    }
    curve = roc(genuine, impostor[::-1], len(impostor))
    kinds = {"genuine": histogram(genuine), "impostor": histogram(impostor)}
    hardest = _hardest(embedder, scores, ijb.same, ijb.left, ijb.right, ijb.templates)
    return Result("1:1 verification of templates", ijb.name, numbers, curve, kinds, hardest)


def _search_templates(features: np.ndarray, ijb: IJB) -> list[Result]:
    def result(name: str, how: Callable, gallery: SubjectTemplates) -> Result:
        probes = ijb.probes
        found = how(features[probes.templates], probes.subjects, features[gallery.templates], gallery.subjects)
        numbers = {
            "rank": found.rank,
            "tpir_at_fpir": found.tpir_at_fpir,
            "mated_searches": found.mated,
            "non_mated_searches": found.non_mated,
            "gallery": len(gallery.templates),
        }
        return Result("1:N identification", f"{ijb.name}{name}", numbers, histogram=found.histogram)

    galleries = list(ijb.galleries.values())
    results = [result(f" {name}", search, gallery) for name, gallery in ijb.galleries.items()]
    mean = {key: _mean([each.numbers[key] for each in results]) for key in ("rank", "tpir_at_fpir")}
    results.append(Result("1:N identification", f"{ijb.name}, mean of galleries", mean))
    templates, subjects = (np.concatenate(parts) for parts in zip(*map(astuple, galleries), strict=True))
    return [
        *results,
        result(", galleries joined as by InsightFace", search_joined, SubjectTemplates(templates, subjects)),
    ]


def _mean(rates: list[dict[str, float | None]]) -> dict[str, float | None]:
    columns = {key: [each[key] for each in rates] for key in rates[0]}
    return {key: None if None in values else float(np.mean(values)) for key, values in columns.items()}


def identify_among(embedder: Embedder, probes: ImageFiles, subjects: np.ndarray, distractors: ImageFiles) -> Result:
    """MegaFace-style identification of probes (`subjects`, int [probes]) among distractors, which are never held."""
    features = embedder.templates(Templates.means(probes, np.arange(len(probes))))
    parts = (part for _, part in embedder.chunks(distractors))
    found = identify(features, subjects, parts, len(distractors))
    numbers = {
        "rank": found.rank,
        "tar_at_far": found.tar_at_far,
        "probes": len(probes),
        "mate_pairs": found.mate_pairs,
        "distractors": found.distractors,
    }
    both = np.stack(mate_pairs(subjects))
    first, second = both[:, both[0] < both[1]]
    mates = pair_scores(features, first, second)
    hardest = {
        "mates least alike": [
            (_pictures(embedder, probes, first[i], probes, second[i]), float(mates[i])) for i in _lowest(mates)
        ],
        "distractors most alike": [
            (_pictures(embedder, probes, i, distractors, found.nearest[i]), float(found.nearest_score[i]))
            for i in _lowest(-found.nearest_score)
        ],
    }
    name = f"{probes.name} among {distractors.name}"
    return Result("identification among distractors", name, numbers, (found.fpr, found.tpr), found.histogram, hardest)


def _hardest(embedder, scores, same, left, right, templates: Templates) -> dict[str, list[tuple[np.ndarray, float]]]:
    rows = {}
    for label, places, sign in (
        ("genuine pairs least alike", np.flatnonzero(same), 1),
        ("impostor pairs most alike", np.flatnonzero(~same), -1),
    ):
        chosen = places[_lowest(sign * scores[places])]
        images = [(templates.first_image(left[i]), templates.first_image(right[i])) for i in chosen]
        pictures = [_pictures(embedder, templates.images, a, templates.images, b) for a, b in images]
        rows[label] = list(zip(pictures, scores[chosen].tolist(), strict=True))
    return rows


def _lowest(values: np.ndarray) -> np.ndarray:
    """Positions of the HARDEST lowest values, ascending."""
    few = np.argpartition(values, min(HARDEST, len(values)) - 1)[:HARDEST]
    return few[np.argsort(values[few])]


def _pictures(embedder: Embedder, first_images, first: int, second_images, second: int) -> np.ndarray:
    both = (first_images, first), (second_images, second)
    return np.concatenate([embedder.picture(images, row, PICTURE) for images, row in both], axis=1)
