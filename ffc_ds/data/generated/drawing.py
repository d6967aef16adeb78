"""The head and everything on it: soft implicit shapes painted on a canvas, from the back to the front.

Coordinates: u to the right and v downwards in units of half an image; the head is about 0.5 wide and 0.7 high on either
side of (0, 0). m is |u|: one stroke paints both eyes, and a tilt that is linear in u makes the halves differ.
Arguments: p are the PERSON and q the PICTURE parameters of parameters.py, float32 [n, 1, 1]; u and v are float32
[n, size, size].
Only + - * / and sqrt make a pixel: IEEE 754 fixes them to the last bit.
"""

import numpy as np


class Canvas:
    """A batch of images in the making: `rgb` float32 [n, 3, size, size], painted over in place."""

    def __init__(self, n: int, size: int):
        self.rgb = np.empty((n, 3, size, size), np.float32)
        self.scratch = np.empty_like(self.rgb)  # large temporaries cost more in page faults than in arithmetic
        self.soft = size / 3  # edges are 1.5 pixels wide
        axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
        self.x, self.y = axis[None, None, :], axis[None, :, None]

    def inside(self, depth: np.ndarray) -> np.ndarray:
        """Share of a pixel that lies inside a shape, from the (signed) depth of its centre below the edge."""
        return np.clip(depth * self.soft + 0.5, 0, 1)

    def paint(self, alpha: np.ndarray, colour: np.ndarray) -> None:
        np.subtract(colour, self.rgb, out=self.scratch)
        self.scratch *= alpha[:, None]
        self.rgb += self.scratch

    def shade(self, alpha: np.ndarray) -> None:
        self.rgb *= (1 - alpha)[:, None]


def blob(u, v, width, height):
    """A soft hump, 1 in the middle and 0 outside an ellipse."""
    hump = np.maximum(1 - (u / width) ** 2 - (v / height) ** 2, 0)
    return hump * hump


def wave(x):
    """A triangle wave of period 1 between -1 and 1."""
    return np.abs(x - np.floor(x) - 0.5) * 4 - 1


def blend(share, first, second, red=0):
    """A colour [n, 3, 1, 1] between two, `red` added to its first channel and half of it taken from the last."""
    first, second = (np.array(c, np.float32)[None, :, None, None] for c in (first, second))
    colour = first + share[:, None] * (second - first)
    tint = np.array([1, 0, -0.5], np.float32)[None, :, None, None]
    return np.clip(colour + np.asarray(red, np.float32).reshape(-1, 1, 1, 1) * tint, 0.02, 1)


def paint_head(canvas, p, q, u, v, cloth):
    """Hair, neck, ears and the skin of the face; returns how much of each pixel is bare skin, [n, size, size]."""
    skin = blend(p.skin, (0.96, 0.78, 0.68), (0.38, 0.23, 0.16), p.skin_red)
    hair = _hair(p, q.dye)
    up, down, m = np.minimum(v, 0), np.maximum(v, 0), np.abs(u)

    a = (u / (p.width + p.hair_side + q.pile)) ** 2
    b = (up / (p.top + p.hair_up + q.pile) + down / p.hair_length) ** 2
    strand = 1 + 0.1 * wave(p.strands * (u + p.parting * v))[:, None]
    hair_back = canvas.inside((1 - np.sqrt(a + b - 0.6 * np.minimum(a, 1) * np.minimum(b, 1))) * 0.5)
    canvas.paint(hair_back, hair * strand * 0.8)
    canvas.paint(canvas.inside(np.minimum(v - 0.3, p.width * 0.62 - m)), skin * 0.8)
    canvas.paint(canvas.inside(v - 0.92 + m * (0.2 * m - 0.1)), cloth)
    ear = np.sqrt(((m - p.width) / p.ear_size) ** 2 + ((v - p.ear_v) / (2 * p.ear_size)) ** 2)
    canvas.paint(canvas.inside((1 - ear) * p.ear_size), skin * 0.9)

    drop = up / p.top + down / p.chin
    a, b = (u / (p.width * (1 - p.jaw * np.clip(drop, 0, 1) ** 2))) ** 2, drop**2
    outline = np.sqrt(a + b - 0.5 * p.square * np.minimum(a, 1) * np.minimum(b, 1))
    face = canvas.inside((1 - outline) * p.width)
    canvas.paint(face, skin)
    bearded = np.clip((v - p.beard_edge + (m - 0.3) * 0.8) * 8, 0, 1)
    canvas.paint(face * np.clip(p.beard, 0, 1) * bearded, hair * 0.8)
    fringe = face * canvas.inside(p.hairline_bend * u * u + p.parting * u - p.hairline * p.top - v)
    canvas.paint(fringe, hair * strand)
    return face * (1 - fringe)


def _hair(p, dye=0.0):
    return blend(p.hair, (0.09, 0.06, 0.05), (0.80, 0.64, 0.42), p.hair_red + dye)


def paint_features(canvas, p, q, u, v, face):
    hair = _hair(p)
    v = v + p.tilt * u
    m, side = np.abs(u), np.sign(u)
    canvas.shade(face * p.cheek * blob(m - 0.27, v - 0.22, 0.2, 0.2))
    _eyes(canvas, p, q, m, v, side, face)

    along = m - p.eye_u - p.brow_shift
    middle = p.eye_v - p.brow_gap - q.raise_brow + p.brow_slant * along + p.brow_arch * along * along
    size = p.brow_size * (1 - (along / p.brow_length) ** 2)
    canvas.paint(face * p.brow_depth * canvas.inside(size - np.abs(v - middle)), hair * 0.55)

    _nose(canvas, p, u, v)
    fold = np.maximum(1 - np.abs(m - p.fold - (v - p.nose_v) * 0.5) * 25, 0)
    canvas.shade(p.fold_depth * fold * canvas.inside(np.minimum(v - p.nose_v, p.mouth_v - v)))
    _mouth(canvas, p, q, m, v, hair)
    canvas.shade(p.cleft * blob(m, v - p.mouth_v - 0.16, 0.08, 0.05))


def _eyes(canvas, p, q, m, v, side, face):
    height = p.eye_height * p.eye_width
    along = m - p.eye_u
    drop = v - p.eye_v + p.eye_slant * along
    canvas.shade(face * p.socket * blob(along, drop, p.eye_width * 2, height * 3))
    lid = height * q.open_eye * (1 - (along / p.eye_width) ** 2)
    depth = lid - np.abs(np.maximum(drop, 0) / p.eye_lower + np.minimum(drop, 0))
    canvas.shade(p.bag * blob(along, drop - height * 2, p.eye_width, height))
    fold = np.abs(drop + p.crease * height * (1 - (along / (p.eye_width * 1.3)) ** 2))
    canvas.shade(p.crease_depth * np.maximum(1 - fold * 40, 0) * canvas.inside(p.eye_width - np.abs(along)))
    canvas.shade(0.75 * canvas.inside(depth + 0.02))
    eye = canvas.inside(depth)
    canvas.paint(eye, 0.9)
    radius = p.iris * height
    centre = np.sqrt((along - q.gaze * side * p.eye_width) ** 2 + drop * drop)
    iris = blend(p.iris_tone, (0.22, 0.12, 0.06), (0.45, 0.60, 0.75), -p.iris_red)
    canvas.paint(eye * canvas.inside(radius - centre), iris)
    canvas.shade(eye * 0.9 * canvas.inside(radius * 0.45 - centre))


def _nose(canvas, p, u, v):
    m = np.abs(u - p.nose_bend * np.maximum(v - p.eye_v, 0) * 3)
    height = np.clip((v - p.eye_v) / (p.nose_v - p.eye_v), 0, 1)
    wall = p.bridge + (p.nose_width - p.bridge) * height**2
    between = canvas.inside(np.minimum(v - p.eye_v, p.nose_v - v))
    canvas.shade(between * p.bridge_depth * np.maximum(1 - np.abs(m - wall) * 22, 0))
    canvas.shade(-0.12 * between * np.maximum(1 - m / p.bridge, 0))
    canvas.shade(p.wing_depth * blob(m - p.nose_width, v - p.nose_v, 0.045, 0.07))
    canvas.shade(0.75 * blob(m - p.nose_width * 0.55, v - p.nose_v, p.nostril * 2, p.nostril * 1.5))


def _mouth(canvas, p, q, m, v, hair):
    width = p.mouth_width * q.wide_mouth
    across = (m / width) ** 2
    taper = 1 - across
    middle = p.mouth_v - (p.lip_curve + q.smile) * across
    gap = np.maximum(q.open_mouth, 0) * taper
    bow = 1 - p.lip_bow * np.maximum(1 - m / (width * 0.3), 0)
    upper, lower = middle - p.lip_upper * taper * bow, middle + gap + p.lip_lower * taper
    above = p.mouth_v - p.nose_v
    moustache = blob(m, v - p.nose_v - above * 0.55, width * 1.15, above * 0.6)
    canvas.paint(np.clip(p.moustache, 0, 1) * moustache, hair * 0.7)
    lips = blend(p.lip_red, (0.62, 0.38, 0.32), (0.72, 0.22, 0.25))
    within = np.clip(taper * 8, 0, 1)
    canvas.paint(within * canvas.inside(np.minimum(v - upper, lower - v)), lips)
    canvas.shade(within * 0.7 * canvas.inside(np.minimum(v - middle, middle + gap - v) + 0.008))
    teeth = np.minimum(v - middle, middle + gap * 0.6 - v)
    canvas.paint(within * canvas.inside(teeth - 0.005), 0.85)


def paint_marks(canvas, marks, u, v, face):
    """Moles and scars: (place, size, darkness) of the person's own."""
    for at_u, at_v, size, depth in marks.transpose(1, 2, 0, 3, 4):
        radius = size * 0.05 + 0.02
        spot = blob(u - (at_u - 0.5) * 0.8, v - at_v + 0.35, radius, radius)
        canvas.shade(face * (depth * 0.9 - 0.2) * spot)
