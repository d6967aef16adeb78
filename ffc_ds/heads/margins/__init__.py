"""Margins, one file each, behind the functions of `base.py`."""

from ffc_ds.config.margins import margin_settings
from ffc_ds.config.settings import HeadConfig
from ffc_ds.heads.margins.adaface import AdaFace
from ffc_ds.heads.margins.additive import AdditiveCosine
from ffc_ds.heads.margins.angle import AdditiveAngle, Combined
from ffc_ds.heads.margins.base import Margin, Rows
from ffc_ds.heads.margins.curricular import Curricular
from ffc_ds.heads.margins.elastic import Elastic
from ffc_ds.heads.margins.magface import MagFace
from ffc_ds.heads.margins.running import RunningState
from ffc_ds.heads.margins.sphereface import SphereFace, SphereFaceR
from ffc_ds.heads.margins.support_vector import SupportVector

__all__ = ["Margin", "Rows", "RunningState", "make_margin"]


def make_margin(config: HeadConfig) -> Margin:
    """The margin that the settings ask for, with its published numbers unless they give others."""
    own = margin_settings(config)
    make = {
        "am": lambda: AdditiveCosine(own["margin_strength"]),
        "arc": lambda: AdditiveAngle(own["margin_strength"], own["arc_guard"], own["straight_through"]),
        "sv": lambda: SupportVector(own["margin_strength"]),
        "combined": lambda: _combined(**own),
        "adaface": lambda: AdaFace(own["margin_strength"], own["adaface_h"], own["adaface_t_alpha"]),
        "curricular": lambda: Curricular(own["margin_strength"]),
        "magface": lambda: MagFace(
            tuple(own["magface_bounds"]),
            tuple(own["magface_margins"]),
            own["magface_lambda_g"],
            own["magface_form"],
        ),
        "sphereface": lambda: SphereFace(own["margin_strength"]),
        "sphereface_r": lambda: SphereFaceR(own["margin_strength"], own["sphereface_lw"], own["sphereface_version"]),
    }
    if config.margin.startswith("elastic_"):
        on_angle, plus = "_arc" in config.margin, config.margin.endswith("_plus")
        return Elastic(own["margin_strength"], own["elastic_std"], on_angle, plus)
    return make[config.margin]()


def _combined(combined, m3_alone, arc_guard, straight_through):
    m1, m2, m3 = combined
    if m3_alone and m3 > 0:
        m1, m2 = 1.0, 0.0
    return Combined(m1, m2, m3, arc_guard, straight_through)
