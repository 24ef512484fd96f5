"""Synthetic scenes with captions: a generic domain of plain shapes, and nine skills that the base model never sees.

A scene is drawn on a canvas of CANVAS x CANVAS blocks and enlarged PIXEL times, so that one latent pixel of an
autoencoder with a factor of 8 covers 2 x 2 blocks. Everything comes from the caller's numpy Generator.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

Random = np.random.Generator | int | None
"""What a random scene is drawn with: a generator, a seed for a new one, or chance."""

Choice = Callable[[np.random.Generator], Sequence[str]]
"""Draws the skills of one scene."""

Colour = tuple[int, int, int]

CANVAS = 32  # blocks along an edge
PIXEL = 4  # image pixels along a block's edge
SIZE = CANVAS * PIXEL  # image pixels along an edge
STAMP = 12  # blocks along the edge of a shape or sprite
JITTER = 2  # blocks a figure may move from its slot, each way
MAX_FIGURES = 3

COLOURS = {
    "red": (214, 40, 40),
    "green": (44, 160, 60),
    "blue": (40, 80, 214),
    "yellow": (240, 208, 40),
    "purple": (140, 50, 170),
    "orange": (240, 130, 30),
}
GROUNDS = {
    "white": (240, 240, 240),
    "grey": (140, 140, 140),
    "black": (24, 24, 24),
    "pink": (245, 180, 200),
    "cyan": (130, 215, 225),
}
SHAPES = ("circle", "square", "triangle", "cross")


@dataclass(frozen=True)
class Skill:
    name: str  # what it is, for people
    kind: str  # character, object, style or background
    trigger: str  # the word in the caption


SKILLS = {
    s.name: s
    for s in (
        Skill("alien", "character", "zorbo"),
        Skill("cat", "character", "mippa"),
        Skill("robot", "character", "krelt"),
        Skill("mushroom", "object", "tovik"),
        Skill("gem", "object", "flarn"),
        Skill("hatching", "style", "scrivex"),
        Skill("palette", "style", "gambrel"),
        Skill("bricks", "background", "vundar"),
        Skill("waves", "background", "quillo"),
    )
}
NAMES = tuple(SKILLS)
FIGURES = tuple(n for n in NAMES if SKILLS[n].kind in ("character", "object"))

# Slots of 1, 2 and 3 figures: (x, y) of the centres, in blocks; far enough apart never to overlap after the jitter.
SLOTS = {1: ((16, 16),), 2: ((8, 16), (24, 16)), 3: ((8, 8), (24, 8), (16, 24))}


def _grid(n: int = STAMP) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of block centres in -1..1: x and y, each `[n, n]`."""
    axis = (np.arange(n) + 0.5) / n * 2 - 1
    x, y = np.meshgrid(axis, axis)
    return x, y


def _paint(layers: Sequence[tuple[np.ndarray, Colour]], n: int = STAMP) -> np.ndarray:
    """Layers of (mask `[n, n]`, colour), later ones on top -> RGBA stamp `[n, n, 4]`, uint8."""
    stamp = np.zeros((n, n, 4), np.uint8)
    for mask, colour in layers:
        stamp[mask] = (*colour, 255)
    return stamp


def _disk(x: np.ndarray, y: np.ndarray, cx: float, cy: float, rx: float, ry: float | None = None) -> np.ndarray:
    """Mask `[n, n]` of an ellipse with this centre and these radii; a circle without `ry`."""
    return ((x - cx) / rx) ** 2 + ((y - cy) / (ry or rx)) ** 2 <= 1


def _box(x: np.ndarray, y: np.ndarray, x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """Mask `[n, n]` of a rectangle from (x0, y0) to (x1, y1)."""
    return (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)


def _shape(name: str) -> np.ndarray:
    """Mask of a plain shape, `[STAMP, STAMP]`."""
    x, y = _grid()
    return {
        "circle": _disk(x, y, 0, 0, 0.85),
        "square": _box(x, y, -0.75, -0.75, 0.75, 0.75),
        "triangle": (y <= 0.8) & (np.abs(x) <= (y + 0.95) * 0.52),
        "cross": _box(x, y, -0.3, -0.9, 0.3, 0.9) | _box(x, y, -0.9, -0.3, 0.9, 0.3),
    }[name]


# The characters and objects differ in outline and brightness, not in colour alone, so that they can be told apart under
# a style that replaces the colours.

DARK, WHITE = (20, 20, 30), (250, 250, 250)


def _alien() -> np.ndarray:
    x, y = _grid()
    return _paint(
        [
            (_box(x, y, -0.62, -0.95, -0.45, -0.4) | _box(x, y, 0.45, -0.95, 0.62, -0.4), (30, 90, 30)),
            (_disk(x, y, 0, 0.2, 0.9, 0.72), (110, 220, 60)),
            (_disk(x, y, -0.4, 0.08, 0.3, 0.34) | _disk(x, y, 0.4, 0.08, 0.3, 0.34), WHITE),
            (_disk(x, y, -0.36, 0.1, 0.14) | _disk(x, y, 0.36, 0.1, 0.14), DARK),
            (_box(x, y, -0.35, 0.58, 0.35, 0.72), DARK),
        ]
    )


def _cat() -> np.ndarray:
    x, y = _grid()
    ears = (y < -0.1) & (y > -0.95) & (np.abs(np.abs(x) - 0.6) <= (y + 0.95) * 0.4)
    return _paint(
        [
            (ears, (200, 70, 120)),
            (_disk(x, y, 0, 0.2, 0.85, 0.72), (250, 120, 170)),
            (_box(x, y, -0.5, -0.05, -0.28, 0.25) | _box(x, y, 0.28, -0.05, 0.5, 0.25), DARK),
            (_disk(x, y, 0, 0.45, 0.35, 0.26), WHITE),
            (_box(x, y, -0.12, 0.3, 0.12, 0.44), DARK),
        ]
    )


def _robot() -> np.ndarray:
    x, y = _grid()
    return _paint(
        [
            (_box(x, y, -0.08, -0.98, 0.08, -0.6), (220, 40, 40)),
            (_box(x, y, -0.85, -0.65, 0.85, 0.95), (70, 90, 130)),
            (_box(x, y, -0.65, -0.42, 0.65, 0.12), (20, 25, 45)),
            (_box(x, y, -0.5, -0.3, -0.15, 0.02) | _box(x, y, 0.15, -0.3, 0.5, 0.02), (255, 235, 60)),
            (_box(x, y, -0.65, 0.35, 0.65, 0.75) & (np.floor((x + 1) * STAMP / 2) % 4 < 2), (200, 210, 225)),
        ]
    )


def _mushroom() -> np.ndarray:
    x, y = _grid()
    return _paint(
        [
            (_box(x, y, -0.32, 0.0, 0.32, 0.95), (245, 235, 205)),
            (_disk(x, y, 0, 0.05, 0.95, 0.95) & (y <= 0.1), (190, 25, 35)),
            (_disk(x, y, -0.5, -0.25, 0.2) | _disk(x, y, 0.48, -0.2, 0.2) | _disk(x, y, 0.02, -0.55, 0.2), WHITE),
        ]
    )


def _gem() -> np.ndarray:
    x, y = _grid()
    diamond = np.abs(x) / 0.8 + np.abs(y) / 0.98 <= 1
    return _paint(
        [
            (diamond, (30, 120, 190)),
            (diamond & (x < 0), (110, 215, 250)),
            (diamond & (y < -0.1) & (np.abs(x) < 0.3), (235, 250, 255)),
            (diamond & (x > 0) & (y > 0.1), (15, 50, 110)),
        ]
    )


_MASKS = {name: _shape(name) for name in SHAPES}
_STAMPS = {(c, s): _paint([(_MASKS[s], COLOURS[c])]) for c, s in product(COLOURS, SHAPES)}
_SPRITES = {"alien": _alien(), "cat": _cat(), "robot": _robot(), "mushroom": _mushroom(), "gem": _gem()}


def _background(name: str, rng: np.random.Generator) -> np.ndarray:
    """Texture `[CANVAS, CANVAS, 3]`, uint8; its phase is random."""
    x, y = np.meshgrid(np.arange(CANVAS), np.arange(CANVAS))
    dx, dy = rng.integers(0, 8, 2)
    if name == "bricks":
        row = (y + dy) // 4
        mortar = ((y + dy) % 4 == 0) | ((x + dx + 4 * (row % 2)) % 8 == 0)
        return np.where(mortar[..., None], (225, 215, 195), (165, 85, 60)).astype(np.uint8)
    wave = np.floor(y + dy + 1.5 * np.sin((x + dx) * 2 * np.pi / 16)) % 8 < 4
    return np.where(wave[..., None], (40, 110, 180), (150, 200, 235)).astype(np.uint8)


_TONES = np.array([(15, 56, 15), (48, 98, 48), (139, 172, 15), (202, 220, 159)], np.uint8)


def _style(name: str, canvas: np.ndarray) -> np.ndarray:
    """The canvas `[CANVAS, CANVAS, 3]` uint8 in a style."""
    x, y = np.meshgrid(np.arange(CANVAS), np.arange(CANVAS))
    if name == "hatching":  # diagonal strokes; dark ground gets light ones
        light = canvas.astype(float).mean(-1, keepdims=True) < 70
        stroke = ((x + y) % 4 == 0)[..., None]
        return np.where(stroke, np.where(light, canvas * 0.4 + 130, canvas * 0.35), canvas).astype(np.uint8)
    luminance = canvas @ np.array([0.299, 0.587, 0.114])
    return _TONES[np.digitize(luminance, (64, 128, 192))]


def is_style(skill: str) -> bool:
    return SKILLS[skill].kind == "style"


def compatible(skills: Collection[str]) -> bool:
    """Whether the skills fit into one scene: no two styles, no two backgrounds, no more figures than slots."""
    kinds = [SKILLS[s].kind for s in skills]
    return (
        len(set(skills)) == len(skills)
        and kinds.count("style") <= 1
        and kinds.count("background") <= 1
        and sum(s in FIGURES for s in skills) <= MAX_FIGURES
    )


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


@dataclass(frozen=True)
class Content:
    """What a scene shows, without where; a figure is a skill, or the colour and shape of a plain one."""

    figures: tuple[str | tuple[str, str], ...]  # in the caption's order
    ground: str  # a background skill or a plain colour
    style: str | None

    @property
    def caption(self) -> str:
        figures = " and ".join(SKILLS[f].trigger if isinstance(f, str) else _article(" ".join(f)) for f in self.figures)
        ground = _article(f"{SKILLS[self.ground].trigger if self.ground in SKILLS else self.ground} ground")
        style = f", {SKILLS[self.style].trigger} style" if self.style else ""
        return f"{figures} on {ground}{style}" if figures else ground + style


def content(skills: Sequence[str] = (), rng: Random = None, shapes: int | None = None) -> Content:
    """Content with the named skills, the rest at random; without skills, of the generic domain.

    `shapes`: how many plain shapes stand beside the skills' figures; at random when not given.

    Raises ValueError for skills that do not fit into one scene.
    """
    rng = np.random.default_rng(rng)
    skills = tuple(skills)
    if not compatible(skills):
        raise ValueError(f"skills that do not fit into one scene: {skills}")
    by_kind = {SKILLS[s].kind: s for s in skills}
    figures = [s for s in skills if s in FIGURES]
    if shapes is None:
        shapes = int(rng.integers(0 if figures else 1, MAX_FIGURES - len(figures) + 1))
    figures += [(str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))) for _ in range(shapes)]
    order = rng.permutation(len(figures))
    ground = by_kind.get("background") or str(rng.choice(list(GROUNDS)))
    return Content(tuple(figures[i] for i in order), ground, by_kind.get("style"))


def render(shown: Content, rng: Random = None) -> np.ndarray:
    """One picture of a content, `[SIZE, SIZE, 3]` uint8: positions and the background's phase are random."""
    rng = np.random.default_rng(rng)
    if shown.ground in SKILLS:
        canvas = _background(shown.ground, rng)
    else:
        canvas = np.full((CANVAS, CANVAS, 3), GROUNDS[shown.ground], np.uint8)
    for figure, slot in zip(shown.figures, SLOTS.get(len(shown.figures), ())):
        stamp = _SPRITES[figure] if isinstance(figure, str) else _STAMPS[figure]
        left, top = np.array(slot) - STAMP // 2 + rng.integers(-JITTER, JITTER + 1, 2)
        window = canvas[top : top + STAMP, left : left + STAMP]
        window[:] = np.where(stamp[..., 3:] > 0, stamp[..., :3], window)
    if shown.style:
        canvas = _style(shown.style, canvas)
    return canvas.repeat(PIXEL, 0).repeat(PIXEL, 1)


def scene(skills: Sequence[str] = (), rng: Random = None, shapes: int | None = None) -> tuple[np.ndarray, str]:
    """One scene with the named skills: the picture `[SIZE, SIZE, 3]` uint8, and its caption."""
    rng = np.random.default_rng(rng)
    shown = content(skills, rng, shapes)
    return render(shown, rng), shown.caption


def random_skills(rng: np.random.Generator, count: int) -> tuple[str, ...]:
    """`count` (1..5) skills that fit into one scene; each such set is as likely as another."""
    while True:
        skills = tuple(rng.choice(NAMES, count, replace=False).tolist())
        if compatible(skills):
            return skills


def labels(skills: Collection[str]) -> np.ndarray:
    """1 for each of NAMES that is among the skills, else 0: `[len(NAMES)]` float32."""
    return np.array([name in skills for name in NAMES], np.float32)


def batch(choose: Choice, count: int, seed: int) -> tuple[np.ndarray, list[str], np.ndarray]:
    """`count` scenes: pictures `[count, SIZE, SIZE, 3]` uint8, captions, labels `[count, len(NAMES)]` float32.

    `choose` gives the skills of each scene.
    """
    rng = np.random.default_rng(seed)
    images, captions, targets = np.empty((count, SIZE, SIZE, 3), np.uint8), [], []
    for i in range(count):
        skills = choose(rng)
        images[i], caption = scene(skills, rng)
        captions.append(caption)
        targets.append(labels(skills))
    return images, captions, np.stack(targets)
