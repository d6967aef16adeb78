"""Procedural face-like images: a person is a pure function of (seed, identity), a picture of (seed, identity, image).

Faces are implicit curves (ellipses, parabolas) on a coordinate grid that the pose warps, a batch at a time. All random
numbers are hashes of counters, and pixels are made with + - * / and sqrt alone, which IEEE 754 fixes to the last bit:
an image is the same alone or in a batch, today or on another machine.

The person is in the geometry and in small details; light, colour, pose and background are drawn anew for every picture
and outweigh them in pixels, so that comparing pixels fails where a trained net does not.
"""

import numpy as np

from ffc_ds.data.generated.drawing import Canvas, blob, paint_features, paint_head, paint_marks, wave
from ffc_ds.data.generated.parameters import PERSON, PICTURE, draw, uniforms
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
    rgb = 0.1 + 0.75 * uniforms(mix(picture_key, COLOUR), 3 * len(COLOURS))
    colours = dict(zip(COLOURS, rgb.reshape(-1, len(COLOURS), 3, 1, 1).swapaxes(0, 1), strict=True))

    canvas = Canvas(len(identities), size)
    x, y = canvas.x, canvas.y
    cos, sin = (1 - q.roll**2) / (1 + q.roll**2), 2 * q.roll / (1 + q.roll**2)
    u = (cos * (x - q.shift_u) + sin * (y - q.shift_v)) / q.zoom
    v = (cos * (y - q.shift_v) - sin * (x - q.shift_u)) / q.zoom
    # A turning head moves what is near its middle most: features slide over the outline, the far side narrows.
    face_u = u - q.yaw * (1 - np.minimum(u * u, 1))
    face_v = v - q.pitch * (1 - np.minimum(v * v, 1))

    _background(canvas, q, colours)
    skin = paint_head(canvas, p, q, u, v, colours["cloth"])
    paint_features(canvas, p, q, face_u, face_v, skin)
    paint_marks(canvas, marks, face_u, face_v, skin)
    _light(canvas, q, u / p.width, v / p.top)
    _occlusion(canvas, p, q, face_u, face_v, colours)
    return _camera(canvas, q, picture_key)


def _background(canvas, q, colours):
    ramp = np.clip(0.5 + q.back_tilt_u * canvas.x + q.back_tilt_v * canvas.y, 0, 1)
    canvas.rgb[:] = colours["back"]
    canvas.paint(ramp, colours["back_far"])
    canvas.paint(blob(canvas.x - q.back_u, canvas.y - q.back_v, q.back_size, q.back_size), colours["blob"])
    canvas.shade(q.bars_depth * wave(q.bars * (canvas.x + q.back_tilt_u * canvas.y)))


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
    scarf = canvas.inside(v - q.scarf_v - u * u * 0.3)
    canvas.paint((q.scarf < 0.08) * scarf, colours["cloth"])
    box = np.minimum(q.patch_width - np.abs(canvas.x - q.patch_u), q.patch_height - np.abs(canvas.y - q.patch_v))
    canvas.paint((q.patch < 0.1) * canvas.inside(box), colours["patch"])


def _camera(canvas, q, picture_key):
    """Some pictures in grey, a tone curve, lens blur, sensor noise; returns uint8 [n, size, size, 3]."""
    rgb = np.clip(canvas.rgb, 0, 1)
    grey = (rgb[:, 0] + rgb[:, 1] + rgb[:, 2])[:, None] / 3
    rgb += np.clip(q.grey, 0, 1)[:, None] * (grey - rgb)
    tone = q.tone[:, None]
    rgb = rgb / (rgb + tone * (1 - rgb))
    amount = np.maximum(q.blur, 0)[:, None]
    for axis in (2, 3):
        rgb += amount * ((np.roll(rgb, 1, axis) + np.roll(rgb, -1, axis)) * 0.5 - rgb) * 0.67

    height, width = rgb.shape[2:]
    bits = mix(picture_key[:, None], NOISE, np.arange(height * width)).view(np.uint16).reshape(-1, height, width, 4)
    noise = bits[..., :3].astype(np.float32) * 2**-15 - 1
    rgb = rgb.transpose(0, 2, 3, 1) + q.noise[..., None] * noise
    return (np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8)
