"""Who is in a picture and how it was taken, as numbers: pure functions of (seed, identity) and (seed, identity, image).

Every random number is the hash of a counter, so each can be had alone, in any order and on any machine.
"""

from types import SimpleNamespace

import numpy as np

from ffc_ds.data.randomness import mix

# name: (low, high) of a uniform draw; geometry in the coordinates of drawing.py, tones as a share between two
# colours, depths as a share of the light that is lost. What cannot be negative but has a range that begins below zero
# is clipped there, so that many have none of it; glasses, scarf and patch are there if the draw is below a threshold.
PERSON = {
    "width": (0.42, 0.56), "top": (0.58, 0.72), "chin": (0.60, 0.78), "jaw": (0.0, 0.42), "square": (0.0, 0.8),
    "ear_v": (-0.12, 0.12), "ear_size": (0.05, 0.12), "skin": (0.0, 1.0), "skin_red": (-0.06, 0.06),
    "hair": (0.0, 1.0), "hair_red": (-0.08, 0.12), "hair_up": (0.02, 0.16), "hair_side": (-0.02, 0.18),
    "hair_length": (0.05, 1.1), "hairline": (0.45, 1.0), "hairline_bend": (-0.5, 1.6), "parting": (-0.5, 0.5),
    "strands": (3.0, 12.0), "tilt": (-0.07, 0.07),
    "eye_u": (0.17, 0.28), "eye_v": (-0.16, 0.02), "eye_width": (0.075, 0.135), "eye_height": (0.35, 0.70),
    "eye_slant": (-0.35, 0.35), "eye_lower": (0.45, 1.0), "iris": (0.55, 0.95), "iris_tone": (0.0, 1.0),
    "iris_red": (0.0, 0.25), "crease": (1.3, 2.2), "crease_depth": (0.0, 0.5), "socket": (0.0, 0.35),
    "bag": (0.0, 0.3), "brow_gap": (0.10, 0.22), "brow_size": (0.012, 0.05), "brow_length": (0.09, 0.17),
    "brow_slant": (-0.35, 0.35), "brow_arch": (-1.0, 5.0), "brow_shift": (-0.04, 0.05), "brow_depth": (0.45, 0.95),
    "nose_v": (0.10, 0.27), "nose_width": (0.055, 0.14), "bridge": (0.02, 0.06), "bridge_depth": (0.05, 0.4),
    "nostril": (0.014, 0.034), "wing_depth": (0.1, 0.5), "nose_bend": (-0.04, 0.04),
    "mouth_v": (0.36, 0.50), "mouth_width": (0.13, 0.27), "lip_upper": (0.015, 0.06), "lip_lower": (0.02, 0.075),
    "lip_bow": (0.0, 0.6), "lip_curve": (-0.04, 0.05), "lip_red": (0.1, 0.8), "fold_depth": (0.0, 0.35),
    "fold": (0.10, 0.22), "cleft": (-0.3, 0.3), "cheek": (-0.25, 0.25), "beard": (-1.2, 0.8),
    "beard_edge": (0.15, 0.40), "moustache": (-0.9, 0.8),
}  # fmt: skip

PICTURE = {
    "shift_u": (-0.12, 0.12), "shift_v": (-0.10, 0.10), "zoom": (0.84, 1.14), "roll": (-0.12, 0.12),
    "yaw": (-0.20, 0.20), "pitch": (-0.08, 0.08), "open_eye": (0.65, 1.1), "gaze": (-0.35, 0.35),
    "smile": (-0.04, 0.09), "open_mouth": (-0.06, 0.08), "raise_brow": (-0.02, 0.05), "wide_mouth": (0.92, 1.15),
    "light_u": (-0.6, 0.6), "light_v": (-0.45, 0.45), "shadow": (-0.7, 0.6), "shadow_u": (-1.0, 1.0),
    "shadow_v": (-1.0, 1.0), "shadow_at": (-0.4, 0.4), "exposure": (0.55, 1.35), "cast_red": (0.75, 1.25),
    "cast_green": (0.82, 1.12), "cast_blue": (0.72, 1.28), "tone": (0.6, 1.7), "grey": (-1.0, 1.0),
    "dye": (-0.12, 0.12), "pile": (-0.03, 0.05),
    "back_tilt_u": (-1.2, 1.2), "back_tilt_v": (-1.2, 1.2), "back_u": (-1.0, 1.0), "back_v": (-1.0, 1.0),
    "back_size": (0.3, 1.0), "bars": (0.5, 5.0), "bars_depth": (-0.3, 0.3),
    "glasses": (0.0, 1.0), "rim": (0.13, 0.18), "scarf": (0.0, 1.0), "scarf_v": (0.28, 0.60),
    "patch": (0.0, 1.0), "patch_u": (-0.6, 0.6), "patch_v": (-0.6, 0.6), "patch_width": (0.12, 0.3),
    "patch_height": (0.12, 0.3), "blur": (-0.5, 1.0), "noise": (0.01, 0.06),
}  # fmt: skip


def uniforms(keys: np.ndarray, count: int) -> np.ndarray:
    """`count` float32 numbers in [0, 1) from each key: uint64 [n] -> [n, count]."""
    return (mix(keys[:, None], np.arange(count)) >> np.uint64(40)).astype(np.float32) * 2**-24


def draw(table: dict[str, tuple[float, float]], keys: np.ndarray) -> SimpleNamespace:
    """The named parameters of a table for each key, as float32 [n, 1, 1] that broadcasts over pixels."""
    low, high = np.array(list(table.values()), np.float32).T
    values = low + (high - low) * uniforms(keys, len(table))
    return SimpleNamespace(**{name: values[:, i, None, None] for i, name in enumerate(table)})
