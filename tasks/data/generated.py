"""Draws bicycles, motorcycles and pickup trucks, so that the whole system runs where no photographs can be had.

A bicycle is two spoked wheels and a thin frame; a motorcycle has thick wheels, an engine and a tank; a pickup truck has
a cab in front of an open bed. Pose, scale, colours, background, blur and noise vary by seed, so that no single pixel
tells the classes apart.
"""

import math

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
    vehicles = {"bicycle": _bicycle, "motorcycle": _motorcycle, "pickup_truck": _pickup_truck}
    if label not in vehicles:
        raise ValueError(f"can draw {', '.join(vehicles)}, not {label!r}")
    vehicles[label](pen, rng)
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
