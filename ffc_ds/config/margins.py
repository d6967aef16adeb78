"""Which settings each margin reads, and what they are if nothing is said: the published numbers."""

from math import inf
from typing import Any

from ffc_ds.errors import UserError

ON_ANGLE = {"arc_guard": True, "straight_through": False}
ELASTIC = {  # arXiv 2109.09416, table 1: its best deviations
    "elastic_arc": {"margin_strength": 0.5, "elastic_std": 0.05},
    "elastic_arc_plus": {"margin_strength": 0.5, "elastic_std": 0.0175},
    "elastic_cos": {"margin_strength": 0.35, "elastic_std": 0.05},
    "elastic_cos_plus": {"margin_strength": 0.35, "elastic_std": 0.025},
}
READS: dict[str, dict[str, Any]] = {
    "am": {"margin_strength": 0.4},
    "arc": {"margin_strength": 0.5} | ON_ANGLE,
    "sv": {"margin_strength": 0.4},
    "combined": {"combined": [1.0, 0.3, 0.2], "m3_alone": False} | ON_ANGLE,
    "adaface": {"margin_strength": 0.4, "adaface_h": 0.333, "adaface_t_alpha": 0.01},
    "curricular": {"margin_strength": 0.5},
    "magface": {
        "magface_bounds": [10.0, 110.0],
        "magface_margins": [0.45, 0.8],
        "magface_lambda_g": 35.0,
        "magface_form": "easy",
    },
    "sphereface": {"margin_strength": 1.7},
    "sphereface_r": {"margin_strength": 1.4, "sphereface_lw": 50.0, "sphereface_version": 2},
    **ELASTIC,
}
SETTINGS = {name for settings in READS.values() for name in settings}
SCALES = {"sphereface": 30.0, "sphereface_r": 30.0}  # of the released code
MULTIPLYING = ("sphereface", "sphereface_r")
OF_LRU = ("am", "arc", "sv", "combined", "sphereface")
# What a set of comparisons hands on to all its margins.
TOLERATED = {"combined": {"margin_strength"}}


def margin_settings(head) -> dict[str, Any]:
    """What the margin of a HeadConfig reads."""
    own = {name: getattr(head, name) for name in READS[head.margin]}
    return {name: READS[head.margin][name] if value is None else value for name, value in own.items()}


def scale_of(head) -> float:
    """The factor on the cosines that a HeadConfig asks for, or the published one."""
    if head.scale is not None:
        return head.scale
    return 32.0 if head.name == "ffc" else SCALES.get(head.margin, 64.0)


def check_margin(head) -> None:
    """Raise UserError for a setting that the margin does not read, for numbers it cannot work with, and for a head that
    it is not for."""
    _check_read(head)
    _check_numbers(head.margin, margin_settings(head))
    if head.name == "ffc" and head.pool == "lru" and head.margin not in OF_LRU:
        raise UserError(f"head.margin {head.margin} is not for head.pool lru, which takes {', '.join(OF_LRU)}.")
    if head.sub_centers < 1:
        raise UserError(f"head.sub_centers is {head.sub_centers}; it must be above 0.")
    if head.sub_centers > 1 and head.name not in ("full_fc", "partial_fc"):
        raise UserError(
            f"head.sub_centers is {head.sub_centers}, but head.name {head.name} keeps no weights of each identity: "
            "use full_fc or partial_fc, or leave head.sub_centers out."
        )


def _check_read(head):
    default = type(head)
    known = READS[head.margin].keys() | TOLERATED.get(head.margin, set())
    if head.preset != "none":
        known |= {"arc_guard"}  # the preset speaks for all margins
    for name in sorted(SETTINGS - known):
        value = getattr(head, name)
        if value != getattr(default(), name):
            readers = ", ".join(margin for margin, settings in READS.items() if name in settings)
            raise UserError(
                f"head.{name} is {value}, but head.margin {head.margin} does not read it; {readers} would."
                + f" `--head.{name} null` drops what a file says." * (getattr(default(), name) is None)
            )


def _check_numbers(margin, own):
    for name in ("adaface_h", "magface_lambda_g", "elastic_std"):
        if not 0 <= own.get(name, 0) < inf:
            raise UserError(f"head.{name} is {own[name]}; it must not be below 0.")
    if not 0 < own.get("sphereface_lw", 1) < inf:
        raise UserError(f"head.sphereface_lw is {own['sphereface_lw']}; it must be above 0.")
    if not 0 < own.get("adaface_t_alpha", 1) <= 1:
        raise UserError(f"head.adaface_t_alpha is {own['adaface_t_alpha']}; it must lie above 0 and at most at 1.")
    if margin in MULTIPLYING and own["margin_strength"] < 1:
        raise UserError(f"head.margin_strength is {own['margin_strength']}; {margin} multiplies by it: at least 1.")
    for name, lowest in (("magface_bounds", 1e-6), ("magface_margins", 0)):
        if name in own and not (len(own[name]) == 2 and lowest <= own[name][0] <= own[name][1]):
            raise UserError(f"head.{name} is {own[name]}; it must be [lower, upper], not below {lowest:g}.")
    if "magface_bounds" in own and own["magface_bounds"][0] == own["magface_bounds"][1]:
        raise UserError(f"head.magface_bounds is {own['magface_bounds']}; the upper one must be above the lower one.")
