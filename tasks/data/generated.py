"""Draws bicycles, motorcycles and other things, so that the whole system runs where no photographs can be had.

A bicycle is two spoked wheels and a thin frame; a motorcycle has thick wheels, an engine and a tank. The other things
are named like classes of CIFAR-100: vehicles that are near to these two (NEAR), and things that are far from both
(FAR). Pose, scale, colours, background, blur and noise vary by seed, so that no single pixel tells the classes apart.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 32
# Drawn larger, then reduced: thin lines stay thin.
SIDE = 128

Colour = tuple[int, int, int]
Point = tuple[float, float]


def draw(label: str, seed: int, size: int = SIZE) -> np.ndarray:
    """One picture, (size, size, 3) uint8, the same for the same label, seed and size.

    Raises ValueError for other labels.
    """
    rng = np.random.default_rng([seed, *label.encode()])
    canvas = Image.fromarray(_background(rng))
    pen = ImageDraw.Draw(canvas)
    _clutter(pen, rng)
    if label not in THINGS:
        raise ValueError(f"can draw {', '.join(THINGS)}, not {label!r}")
    THINGS[label](pen, rng)
    if rng.random() < 0.5:
        canvas = canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    background = tuple(int(value) for value in np.asarray(canvas).reshape(-1, 3).mean(axis=0))
    canvas = canvas.rotate(rng.uniform(-18, 18), Image.Resampling.BILINEAR, fillcolor=background)
    small = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 2.6))).resize((size, size), Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.float32)
    pixels = (pixels - 128) * rng.uniform(0.5, 1.1) + 128 + rng.uniform(-25, 25)
    return (pixels + rng.normal(0, rng.uniform(2, 16), pixels.shape)).clip(0, 255).astype(np.uint8)


def _background(rng: np.random.Generator) -> np.ndarray:
    side = SIDE
    top, bottom = rng.integers(40, 256, 3), rng.integers(30, 256, 3)
    ramp = np.linspace(0, 1, side)[:, None, None]
    return np.broadcast_to(top * (1 - ramp) + bottom * ramp, (side, side, 3)).astype(np.uint8)


def _clutter(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    side = SIDE
    for _ in range(rng.integers(0, 5)):
        x, y = rng.uniform(0, side, 2)
        w, h = rng.uniform(6, 50, 2)
        shape = pen.rectangle if rng.random() < 0.5 else pen.ellipse
        shape((x, y, x + w, y + h), fill=_colour(rng))


def _colour(rng: np.random.Generator, low: int = 0, high: int = 256) -> Colour:
    red, green, blue = rng.integers(low, high, 3)
    return int(red), int(green), int(blue)


def _pose(rng: np.random.Generator) -> tuple[Point, Point, float]:
    """Hub of each wheel and the wheels' radius."""
    side = SIDE
    base = rng.uniform(0.40, 0.58) * side
    x = (side - base) / 2 + rng.uniform(-0.10, 0.10) * side
    y = rng.uniform(0.56, 0.74) * side
    return (x, y), (x + base, y + rng.uniform(-4, 4)), base * rng.uniform(0.30, 0.42)


def _wheel(pen: ImageDraw.ImageDraw, hub: Point, radius: float, colour: Colour, width: int, spokes: int) -> None:
    x, y = hub
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=width)
    for spoke in range(spokes):
        angle = math.pi * spoke / spokes
        dx, dy = radius * math.cos(angle), radius * math.sin(angle)
        pen.line((x - dx, y - dy, x + dx, y + dy), fill=colour, width=1)


def _between(a: Point, b: Point, share: float, lift: float = 0) -> Point:
    return a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share - lift


def _bicycle(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    rear, front, radius = _pose(rng)
    tyre, frame = _colour(rng, 0, 140), _colour(rng)
    width = int(rng.integers(2, 5))
    for hub in (rear, front):
        _wheel(pen, hub, radius, tyre, int(rng.integers(2, 5)), int(rng.integers(3, 7)))
    pedals = _between(rear, front, rng.uniform(0.40, 0.50))
    saddle = _between(rear, front, rng.uniform(0.24, 0.34), radius * rng.uniform(1.3, 1.8))
    head = _between(rear, front, rng.uniform(0.82, 0.92), radius * rng.uniform(1.3, 1.9))
    for a, b in ((rear, saddle), (rear, pedals), (pedals, saddle), (pedals, head), (saddle, head), (head, front)):
        pen.line((*a, *b), fill=frame, width=width)
    x, y = saddle
    pen.line((x - 7, y - 3, x + 6, y - 3), fill=tyre, width=width + 1)
    x, y = head
    pen.line((x, y, x + rng.uniform(-4, 8), y - rng.uniform(5, 12)), fill=frame, width=width)
    if rng.random() < 0.25:  # a bag on the frame: some bicycles are bulky
        pen.polygon((_between(pedals, saddle, 0.5), saddle, head, _between(pedals, head, 0.5)), fill=_colour(rng))


def _motorcycle(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    rear, front, radius = _pose(rng)
    radius *= rng.uniform(0.80, 1.0)
    tyre, body, metal = _colour(rng, 0, 140), _colour(rng), _colour(rng, 60, 230)
    for hub in (rear, front):
        _wheel(pen, hub, radius, tyre, int(rng.integers(4, 9)), int(rng.integers(0, 4)))
    seat = _between(rear, front, rng.uniform(0.05, 0.15), radius * rng.uniform(0.9, 1.2))
    tank = _between(rear, front, rng.uniform(0.60, 0.75), radius * rng.uniform(1.2, 1.6))
    head = _between(rear, front, rng.uniform(0.80, 0.90), radius * rng.uniform(1.3, 1.7))
    pen.line((*head, *front), fill=metal, width=int(rng.integers(3, 6)))
    x, y = _between(rear, front, rng.uniform(0.44, 0.54), radius * 0.2)
    reach = radius * rng.uniform(0.40, 0.62)
    pen.ellipse((x - reach, y - reach, x + reach, y + reach), fill=metal)
    pen.polygon((seat, tank, _between(rear, front, 0.68, radius * 0.6), _between(rear, front, 0.25, 4)), fill=body)
    x, y = tank
    reach = radius * rng.uniform(0.30, 0.48)
    pen.ellipse((x - reach * 1.5, y - reach, x + reach * 1.2, y + reach * 0.8), fill=body)
    if rng.random() < 0.6:
        pen.line((*_between(rear, front, 0.45), rear[0] - radius * 0.6, rear[1] + 2), fill=metal, width=4)
    x, y = head
    pen.line((x, y, x - rng.uniform(2, 8), y - rng.uniform(4, 10)), fill=tyre, width=3)


def _pickup_truck(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    rear, front, radius = _pose(rng)
    radius *= rng.uniform(0.5, 0.7)
    tyre, body, glass = _colour(rng, 0, 140), _colour(rng), _colour(rng, 60, 230)
    sill, deck = radius * 0.2, radius * rng.uniform(1.4, 1.9)
    tail, nose = _between(rear, front, rng.uniform(-0.35, -0.25)), _between(rear, front, rng.uniform(1.25, 1.35))
    pen.rectangle((tail[0], tail[1] - deck, nose[0], nose[1] - sill), fill=body)
    roof = deck + radius * rng.uniform(1.1, 1.6)
    back, windscreen = _between(rear, front, rng.uniform(0.35, 0.50)), _between(rear, front, rng.uniform(0.80, 0.95))
    slope = radius * rng.uniform(0.3, 0.8)
    cab = [(back[0], back[1] - deck), (back[0], back[1] - roof), (windscreen[0] - slope, windscreen[1] - roof)]
    pen.polygon([*cab, (windscreen[0], windscreen[1] - deck)], fill=body)
    pen.rectangle((back[0] + 4, back[1] - roof + 4, windscreen[0] - slope, back[1] - deck), fill=glass)
    for x, y in (rear, front):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tyre)
        pen.ellipse((x - radius / 3, y - radius / 3, x + radius / 3, y + radius / 3), fill=glass)


def _bus(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    rear, front, radius = _pose(rng)
    radius *= rng.uniform(0.4, 0.55)
    tyre, body, glass = _colour(rng, 0, 140), _colour(rng), _colour(rng, 60, 230)
    left, right = rear[0] - rng.uniform(14, 24), front[0] + rng.uniform(14, 24)
    bottom = rear[1] - radius * 0.1
    top = bottom - rng.uniform(38, 56)
    pen.rounded_rectangle((left, top, right, bottom), radius=6, fill=body)
    windows = int(rng.integers(4, 7))
    step = (right - left - 8) / windows
    for window in range(windows):
        x = left + 6 + window * step
        pen.rectangle((x, top + 8, x + step - 5, top + 8 + (bottom - top) * 0.35), fill=glass)
    _discs(pen, (rear, front), radius, tyre)


def _streetcar(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    middle, bottom, half = SIDE / 2 + rng.uniform(-8, 8), SIDE * rng.uniform(0.68, 0.80), rng.uniform(40, 54)
    top = bottom - rng.uniform(36, 50)
    body, glass, metal = _colour(rng), _colour(rng, 60, 230), _colour(rng, 0, 140)
    pen.line((0, bottom + 7, SIDE, bottom + 7), fill=metal, width=2)
    pen.line((0, top - 26, SIDE, top - 26), fill=metal, width=1)
    pen.line((middle - 12, top, middle, top - 26, middle + 12, top), fill=metal, width=2)
    pen.rectangle((middle - half, top, middle + half, bottom), fill=body)
    pen.rectangle((middle - half, bottom - 12, middle + half, bottom - 8), fill=_colour(rng))
    for x in np.linspace(middle - half + 6, middle + half - 16, 5):
        pen.rectangle((x, top + 7, x + 11, top + 21), fill=glass)
    hubs = [(middle + side * half * share, bottom + 2) for side in (-1, 1) for share in (0.75, 0.45)]
    _discs(pen, hubs, 5, metal)


def _house(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    middle, bottom = SIDE / 2 + rng.uniform(-12, 12), SIDE * rng.uniform(0.80, 0.95)
    half, height, roof = rng.uniform(26, 42), rng.uniform(34, 50), rng.uniform(20, 36)
    wall, tiles, glass = _colour(rng), _colour(rng, 0, 200), _colour(rng, 60, 230)
    top = bottom - height
    pen.rectangle((middle - half, top, middle + half, bottom), fill=wall)
    pen.polygon(((middle - half - 6, top), (middle, top - roof), (middle + half + 6, top)), fill=tiles)
    pen.rectangle((middle - 6, bottom - 22, middle + 6, bottom), fill=tiles)
    for x in (middle - half * 0.6, middle + half * 0.6):
        pen.rectangle((x - 7, top + 8, x + 7, top + 20), fill=glass)


def _oak_tree(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    x, bottom, width = SIDE / 2 + rng.uniform(-14, 14), SIDE * 0.95, rng.uniform(5, 10)
    fork = SIDE * rng.uniform(0.50, 0.62)
    bark = _colour(rng, 20, 130)
    pen.polygon(((x - width, bottom), (x - width / 2, fork), (x + width / 2, fork), (x + width, bottom)), fill=bark)
    leaves = _colour(rng, 20, 200)
    for _ in range(int(rng.integers(9, 16))):
        shade = tuple(int(np.clip(value + rng.integers(-25, 26), 0, 255)) for value in leaves)
        cx, cy, reach = x + rng.normal(0, 17), fork - 12 + rng.normal(0, 12), rng.uniform(9, 19)
        pen.ellipse((cx - reach, cy - reach, cx + reach, cy + reach), fill=shade)


def _mushroom(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    x, bottom = SIDE / 2 + rng.uniform(-14, 14), SIDE * rng.uniform(0.80, 0.95)
    stem, height, reach = rng.uniform(6, 12), rng.uniform(34, 52), rng.uniform(24, 40)
    top = bottom - height
    pen.rounded_rectangle((x - stem, top, x + stem, bottom), radius=5, fill=_colour(rng, 150, 256))
    pen.pieslice((x - reach, top - reach * 0.8, x + reach, top + reach * 0.8), 180, 360, fill=_colour(rng))
    spots = _colour(rng, 150, 256)
    for _ in range(int(rng.integers(0, 6))):
        cx, cy, size = x + rng.uniform(-0.6, 0.6) * reach, top - rng.uniform(0.1, 0.5) * reach, rng.uniform(2, 5)
        pen.ellipse((cx - size, cy - size, cx + size, cy + size), fill=spots)


def _bottle(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    x, bottom = SIDE / 2 + rng.uniform(-16, 16), SIDE * rng.uniform(0.85, 0.95)
    half, neck, height = rng.uniform(11, 18), rng.uniform(4, 6), rng.uniform(44, 58)
    glass, top = _colour(rng), bottom - height
    pen.rounded_rectangle((x - half, top, x + half, bottom), radius=6, fill=glass)
    pen.polygon(((x - half, top + 5), (x - neck, top - 14), (x + neck, top - 14), (x + half, top + 5)), fill=glass)
    pen.rectangle((x - neck, top - 28, x + neck, top - 12), fill=glass)
    pen.rectangle((x - neck - 1, top - 32, x + neck + 1, top - 27), fill=_colour(rng))
    pen.rectangle((x - half, top + height * 0.3, x + half, top + height * 0.7), fill=_colour(rng, 100, 256))


def _chair(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    left, seat = SIDE * rng.uniform(0.22, 0.34), SIDE * rng.uniform(0.54, 0.64)
    wood, width = _colour(rng), rng.uniform(38, 52)
    lean, back, legs = rng.uniform(0, 8), rng.uniform(38, 52), rng.uniform(34, 44)
    thick = int(rng.integers(4, 8))
    pen.polygon(((left, seat), (left + width, seat), (left + width + 6, seat + 7), (left + 6, seat + 7)), fill=wood)
    for share in (0.0, 0.5, 1.0):
        x = left + share * width * 0.35
        pen.line((x, seat, x - lean, seat - back), fill=wood, width=thick)
    pen.line((left - lean, seat - back, left - lean + width * 0.35, seat - back), fill=wood, width=thick)
    for x in (left + 3, left + 12, left + width - 6, left + width + 4):
        pen.line((x, seat + 5, x, seat + legs), fill=wood, width=thick)


def _aquarium_fish(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    x, y = SIDE / 2 + rng.uniform(-10, 10), SIDE / 2 + rng.uniform(-16, 16)
    length, height = rng.uniform(28, 42), rng.uniform(14, 26)
    scales, fins = _colour(rng), _colour(rng)
    tail = x + length * 0.8
    pen.polygon(((tail, y), (tail + 22, y - height * 0.8), (tail + 22, y + height * 0.8)), fill=fins)
    pen.polygon(((x - 8, y - height * 0.8), (x + 14, y - height * 1.5), (x + 22, y - height * 0.5)), fill=fins)
    pen.ellipse((x - length, y - height, x + length, y + height), fill=scales)
    for stripe in range(int(rng.integers(0, 4))):
        at = x - length * 0.3 + stripe * 13
        pen.line((at, y - height * 0.8, at, y + height * 0.8), fill=fins, width=4)
    eye = x - length * 0.65
    pen.ellipse((eye - 4, y - 7, eye + 4, y + 1), fill=(250, 250, 250))
    pen.ellipse((eye - 2, y - 5, eye + 2, y - 1), fill=(10, 10, 10))


def _discs(pen: ImageDraw.ImageDraw, hubs: Sequence[Point], radius: float, colour: Colour) -> None:
    for x, y in hubs:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


Drawing = Callable[[ImageDraw.ImageDraw, np.random.Generator], None]
# Other vehicles, and things that look like none.
NEAR: dict[str, Drawing] = {"pickup_truck": _pickup_truck, "bus": _bus, "streetcar": _streetcar}
FAR: dict[str, Drawing] = {
    "house": _house,
    "oak_tree": _oak_tree,
    "mushroom": _mushroom,
    "bottle": _bottle,
    "chair": _chair,
    "aquarium_fish": _aquarium_fish,
}
THINGS: dict[str, Drawing] = {"bicycle": _bicycle, "motorcycle": _motorcycle, **NEAR, **FAR}
