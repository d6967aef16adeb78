"""Procedural face-like images: a person is a pure function of (seed, identity), a picture of (seed, identity, image).

Faces are implicit curves (ellipses, parabolas) painted on a warped coordinate grid, back to front, a batch at a time.
All random numbers are hashes of counters, and pixels are made with + - * / and sqrt alone, which IEEE 754 fixes to the
last bit, so an image is the same alone or in a batch, today or on another machine.

Coordinates: u to the right and v downwards in units of half an image; the head is about 0.5 wide and 0.7 high on either
side of (0, 0). `m` is |u|: one stroke paints both eyes, and a tilt that is linear in u makes the halves differ.
"""

import numpy as np

from ffc_ds.data.face_parameters import PERSON, PICTURE, draw, uniforms
from ffc_ds.data.randomness import mix

RENDERER_VERSION = 1  # part of the cache key of built data sets: raise it whenever a pixel changes

MARK, COLOUR, NOISE = -1, -2, -3  # streams of random numbers beside the tables
MARKS = 6  # moles and scars of a person
COLOURS = ("back", "back_far", "blob", "cloth", "patch", "frame")  # that change from picture to picture


def render(identities: np.ndarray, images: np.ndarray, size: int, seed: int = 0) -> np.ndarray:
    """Draws image number images[i] of identity identities[i].

    identities, images: int64 [n], any values. Returns uint8 RGB [n, size, size, 3].
    """
    identities, images = np.asarray(identities, np.int64), np.asarray(images, np.int64)
    out = np.empty((len(identities), size, size, 3), np.uint8)
    step = max(1, 2**16 // size**2)  # the planes of so many images stay in the processor's cache
    for i in range(0, len(identities), step):
        out[i : i + step] = _render(identities[i : i + step], images[i : i + step], size, seed)
    return out


def _render(identities, images, size, seed):
    person_key, picture_key = mix(seed, identities), mix(seed, identities, images)
    p, q = draw(PERSON, person_key), draw(PICTURE, picture_key)
    marks = uniforms(mix(person_key, MARK), 4 * MARKS).reshape(-1, MARKS, 4, 1, 1)
    random_colours = 0.1 + 0.75 * uniforms(mix(picture_key, COLOUR), 3 * len(COLOURS)).reshape(-1, len(COLOURS), 3, 1, 1)
    colours = {name: random_colours[:, i] for i, name in enumerate(COLOURS)}
    p.eye_height = p.eye_height * p.eye_width

    canvas = Canvas(len(identities), size)
    x, y = canvas.x, canvas.y
    cos, sin = (1 - q.roll**2) / (1 + q.roll**2), 2 * q.roll / (1 + q.roll**2)
    u = (cos * (x - q.shift_u) + sin * (y - q.shift_v)) / q.zoom
    v = (cos * (y - q.shift_v) - sin * (x - q.shift_u)) / q.zoom
    # A turning head moves what is near its middle most: features slide over the outline, the far side narrows.
    face_u = u - q.yaw * (1 - np.minimum(u * u, 1))
    face_v = v - q.pitch * (1 - np.minimum(v * v, 1))

    _background(canvas, q, colours)
    face = _head(canvas, p, q, u, v, colours)
    _features(canvas, p, q, face_u, face_v, face)
    _marks(canvas, marks, face_u, face_v, face)
    _light(canvas, q, u / p.width, v / p.top)
    _occlusion(canvas, p, q, face_u, face_v, colours)
    return _camera(canvas, q, picture_key)


class Canvas:
    """A batch of images in the making: `rgb` float32 [n, 3, size, size], painted over in place."""

    def __init__(self, n: int, size: int):
        self.rgb = np.empty((n, 3, size, size), np.float32)
        self.scratch = np.empty_like(self.rgb)  # large temporaries cost more in page faults than in arithmetic
        self.soft = (size / 3)  # edges are 1.5 pixels wide
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


def _background(canvas, q, colours):
    ramp = np.clip(0.5 + q.back_tilt_u * canvas.x + q.back_tilt_v * canvas.y, 0, 1)
    canvas.rgb[:] = colours["back"]
    canvas.paint(ramp, colours["back_far"])
    canvas.paint(blob(canvas.x - q.back_u, canvas.y - q.back_v, q.back_size, q.back_size), colours["blob"])
    canvas.shade(q.bars_depth * wave(q.bars * (canvas.x + q.back_tilt_u * canvas.y)))


def _head(canvas, p, q, u, v, colours):
    """Hair, neck, ears and the skin of the face; returns the alpha of the face, hair excluded."""
    skin = blend(p.skin, (0.96, 0.78, 0.68), (0.38, 0.23, 0.16), p.skin_red)
    hair = blend(p.hair, (0.09, 0.06, 0.05), (0.80, 0.64, 0.42), p.hair_red + q.dye)
    up, down, m = np.minimum(v, 0), np.maximum(v, 0), np.abs(u)

    a = (u / (p.width + p.hair_side + q.pile)) ** 2
    b = (up / (p.top + p.hair_up + q.pile) + down / p.hair_length) ** 2
    strand = 1 + 0.1 * wave(p.strands * (u + p.parting * v))[:, None]
    hair_back = canvas.inside((1 - np.sqrt(a + b - 0.6 * np.minimum(a, 1) * np.minimum(b, 1))) * 0.5)
    canvas.paint(hair_back, hair * strand * 0.8)
    canvas.paint(canvas.inside(np.minimum(v - 0.3, p.width * 0.62 - m)), skin * 0.8)
    canvas.paint(canvas.inside(v - 0.92 - u * u * -0.2 - m * 0.1), colours["cloth"])
    canvas.paint(canvas.inside((1 - np.sqrt(((m - p.width) / p.ear_size) ** 2 + ((v - p.ear_v) / (2 * p.ear_size)) ** 2))
                               * p.ear_size), skin * 0.9)  # fmt: skip

    drop = up / p.top + down / p.chin
    a, b = (u / (p.width * (1 - p.jaw * np.maximum(drop, 0) ** 2))) ** 2, drop**2
    outline = np.sqrt(np.maximum(a + b - p.square * a * b * 0.5, 0))
    face = canvas.inside((1 - outline) * p.width)
    canvas.paint(face, skin)
    beard = np.clip(p.beard, 0, 1) * face * np.clip((v - p.beard_edge + (m - 0.3) * 0.8) * 8, 0, 1)
    canvas.paint(beard, hair * 0.8)
    fringe = face * canvas.inside(p.hairline_bend * u * u + p.parting * u - p.hairline * p.top - v)
    canvas.paint(fringe, hair * strand)
    return face * (1 - fringe)


def _features(canvas, p, q, u, v, face):
    hair = blend(p.hair, (0.09, 0.06, 0.05), (0.80, 0.64, 0.42), p.hair_red)
    v = v + p.tilt * u
    m, side = np.abs(u), np.sign(u)
    canvas.shade(face * p.cheek * blob(m - 0.27, v - 0.22, 0.2, 0.2))
    _eyes(canvas, p, q, m, v, side, face)

    along = m - p.eye_u - p.brow_shift
    middle = p.eye_v - p.brow_gap - q.raise_brow + p.brow_slant * along + p.brow_arch * along * along
    size = p.brow_size * (1 - (along / p.brow_length) ** 2)
    canvas.paint(face * p.brow_depth * canvas.inside(size - np.abs(v - middle)), hair * 0.55)

    n = np.abs(u - p.nose_bend * np.maximum(v - p.eye_v, 0) * 3)
    height = np.clip((v - p.eye_v) / (p.nose_v - p.eye_v), 0, 1)
    wall = p.bridge + (p.nose_width - p.bridge) * height**2
    between = canvas.inside(np.minimum(v - p.eye_v, p.nose_v - v))
    canvas.shade(between * p.bridge_depth * np.maximum(1 - np.abs(n - wall) * 22, 0))
    canvas.shade(-0.12 * between * np.maximum(1 - n / p.bridge, 0))
    canvas.shade(p.wing_depth * blob(n - p.nose_width, v - p.nose_v, 0.045, 0.07))
    canvas.shade(0.75 * blob(n - p.nose_width * 0.55, v - p.nose_v, p.nostril * 2, p.nostril * 1.5))
    canvas.shade(p.fold_depth * np.maximum(1 - np.abs(m - p.fold - (v - p.nose_v) * 0.5) * 25, 0)
                 * canvas.inside(np.minimum(v - p.nose_v, p.mouth_v - v)))  # fmt: skip
    _mouth(canvas, p, q, m, v, hair)
    canvas.shade(p.cleft * blob(m, v - p.mouth_v - 0.16, 0.08, 0.05))


def _eyes(canvas, p, q, m, v, side, face):
    along = m - p.eye_u
    drop = v - p.eye_v + p.eye_slant * along
    canvas.shade(face * p.socket * blob(along, drop, p.eye_width * 2, p.eye_height * 3))
    lid = p.eye_height * q.open_eye * (1 - (along / p.eye_width) ** 2)
    depth = lid - np.abs(np.maximum(drop, 0) / p.eye_lower + np.minimum(drop, 0))
    canvas.shade(p.bag * blob(along, drop - p.eye_height * 2, p.eye_width, p.eye_height))
    fold = np.abs(drop + p.crease * p.eye_height * (1 - (along / (p.eye_width * 1.3)) ** 2))
    canvas.shade(p.crease_depth * np.maximum(1 - fold * 40, 0) * canvas.inside(p.eye_width - np.abs(along)))
    canvas.shade(0.75 * canvas.inside(depth + 0.02))
    eye = canvas.inside(depth)
    canvas.paint(eye, np.array([0.93, 0.91, 0.88], np.float32)[None, :, None, None])
    radius = p.iris * p.eye_height
    centre = np.sqrt((along - q.gaze * side * p.eye_width) ** 2 + drop * drop)
    iris = blend(p.iris_tone, (0.22, 0.12, 0.06), (0.45, 0.60, 0.75)) + p.iris_green[:, None] * np.array(
        [0, 0.5, -0.5], np.float32).reshape(1, 3, 1, 1)  # fmt: skip
    canvas.paint(eye * canvas.inside(radius - centre), iris)
    canvas.shade(eye * 0.9 * canvas.inside(radius * 0.45 - centre))


def _mouth(canvas, p, q, m, v, hair):
    width = p.mouth_width * q.wide_mouth
    across = (m / width) ** 2
    taper = 1 - across
    middle = p.mouth_v - (p.lip_curve + q.smile) * across
    gap = np.maximum(q.open_mouth, 0) * taper
    bow = 1 - p.lip_bow * np.maximum(1 - m / (width * 0.3), 0)
    upper, lower = middle - p.lip_upper * taper * bow, middle + gap + p.lip_lower * taper
    above = p.mouth_v - p.nose_v
    canvas.paint(np.clip(p.moustache, 0, 1) * blob(m, v - p.nose_v - above * 0.55, width * 1.15, above * 0.6),
                 hair * 0.7)  # fmt: skip
    lips = blend(p.lip_red, (0.62, 0.38, 0.32), (0.72, 0.22, 0.25))
    within = np.clip(taper * 8, 0, 1)
    canvas.paint(within * canvas.inside(np.minimum(v - upper, lower - v)), lips)
    canvas.shade(within * 0.7 * canvas.inside(np.minimum(v - middle, middle + gap - v) + 0.008))
    teeth = np.minimum(v - middle, middle + gap * 0.6 - v)
    canvas.paint(within * canvas.inside(teeth - 0.005), 0.85)


def _marks(canvas, marks, u, v, face):
    """Moles and scars: (place, size, darkness) of the person's own."""
    for at_u, at_v, size, depth in marks.transpose(1, 2, 0, 3, 4):
        spot = blob(u - (at_u - 0.5) * 0.8, v - (at_v - 0.35), *[size * 0.05 + 0.02] * 2)
        canvas.shade(face * (depth * 0.9 - 0.2) * spot)


def _light(canvas, q, u, v):
    """A lamp from one side of the round head, and the straight edge of something's shadow."""
    lamp = 1 + q.light_u * np.clip(u, -1, 1) + q.light_v * np.clip(v, -1, 1)
    edge = np.clip((q.shadow_u * canvas.x + q.shadow_v * canvas.y - q.shadow_at) * 4, 0, 1)
    gain = np.concatenate([q.cast_red, q.cast_green, q.cast_blue], axis=1)[..., None] * q.exposure[:, None]
    canvas.rgb *= (lamp * (1 - np.maximum(q.shadow, 0) * edge))[:, None] * gain


def _occlusion(canvas, p, q, u, v, colours):
    m = np.abs(u)
    ring = np.abs(np.sqrt((m - p.eye_u) ** 2 + (v - p.eye_v) ** 2) - q.rim)
    bar = np.maximum(np.abs(v - p.eye_v), m - p.eye_u + q.rim)
    frame = canvas.inside(0.02 - np.minimum(ring, bar))
    canvas.paint((q.glasses < 0.15) * frame, colours["frame"] * 0.5)
    canvas.paint((q.scarf < 0.08) * canvas.inside(v - q.scarf_v - u * u * 0.3), colours["cloth"])
    box = np.minimum(q.patch_width - np.abs(canvas.x - q.patch_u), q.patch_height - np.abs(canvas.y - q.patch_v))
    canvas.paint((q.patch < 0.1) * canvas.inside(box), colours["patch"])


def _camera(canvas, q, picture_key):
    """Colour to grey for some pictures, a tone curve, lens blur, sensor noise; float [n, 3, s, s] -> uint8 [n, s, s, 3]."""
    rgb = np.clip(canvas.rgb, 0, 1)
    grey = (rgb[:, 0] + rgb[:, 1] + rgb[:, 2])[:, None] / 3
    rgb += np.clip(q.grey, 0, 1)[:, None] * (grey - rgb)
    tone = q.tone[:, None]
    rgb = rgb / (rgb + tone * (1 - rgb))
    amount = np.maximum(q.blur, 0)[:, None]
    for axis in (2, 3):
        ends = np.concatenate([np.take(rgb, [0], axis), rgb, np.take(rgb, [-1], axis)], axis)
        before, after = (np.take(ends, range(i, i + rgb.shape[axis]), axis) for i in (0, 2))
        rgb += amount * ((before + after) * 0.5 - rgb) * 0.67

    height, width = rgb.shape[2:]
    bits = mix(picture_key[:, None], NOISE, np.arange(height * width)).view(np.uint16).reshape(-1, height, width, 4)
    noise = bits[..., :3].astype(np.float32) * 2**-15 - 1
    rgb = rgb.transpose(0, 2, 3, 1) + q.noise[..., None] * noise
    return (np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8)
