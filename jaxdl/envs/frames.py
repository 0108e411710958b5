"""Pictures of an environment's state, for people: arrays [H, W, 3] in [0, 1], made on the host."""

import colorsys
from collections.abc import Callable
from typing import Any

import numpy as np

SIZE = 120  # pixels of each side
FINE = 4  # drawn so many times as large, so that lines are smooth
INK, WOOD, SIGN, GROUND = "#222222", "#b5651d", "#2b6cb0", "#999999"


class Canvas:
    """A square of the plane, `reach` to each side of `middle`, to draw on; `size` pixels."""

    def __init__(self, reach: float, middle: tuple[float, float] = (0., 0.),
                 size: int = SIZE) -> None:
        from PIL import Image, ImageDraw

        self.size, self.scale, self.middle = size, size * FINE / 2 / reach, middle
        self.image = Image.new("RGB", (size * FINE, size * FINE), "white")
        self.draw: Any = ImageDraw.Draw(self.image)

    def at(self, place: Any) -> tuple[float, float]:
        """Pixels of a place; y points up."""
        x, y = (float(np.asarray(v).item()) for v in place)
        half = self.size * FINE / 2
        return (half + (x - self.middle[0]) * self.scale, half - (y - self.middle[1]) * self.scale)

    def line(self, *places: Any, colour: Any = INK, width: float = 0.02) -> None:
        """Through places."""
        self.draw.line([self.at(p) for p in places], colour,
                       max(1, round(width * self.scale)), "curve")

    def disc(self, place: Any, radius: float, colour: Any = INK) -> None:
        """Filled."""
        (x, y), r = self.at(place), radius * self.scale
        self.draw.ellipse((x - r, y - r, x + r, y + r), colour)

    def box(self, low: Any, high: Any, colour: str) -> None:
        """Filled, between two corners."""
        (left, bottom), (right, top) = self.at(low), self.at(high)
        self.draw.rectangle((left, top, right, bottom), colour)

    def pixels(self) -> np.ndarray:
        """What was drawn."""
        from PIL import Image

        small = self.image.resize((self.size, self.size), Image.Resampling.BOX)
        return np.asarray(small, np.float32) / 255


def cart_pole(state: Any) -> np.ndarray:
    """The pole, one metre long, on its cart, between the ends of the track."""
    canvas = Canvas(2.6, (0., 0.6))
    x, angle = np.asarray(state.x).item(), np.asarray(state.theta).item()
    canvas.line((-2.4, -0.15), (2.4, -0.15), colour=GROUND, width=0.04)
    for end in (-2.4, 2.4):
        canvas.line((end, -0.3), (end, 0.), colour=GROUND, width=0.04)
    canvas.box((x - 0.35, -0.13), (x + 0.35, 0.15), INK)
    canvas.line((x, 0.15), (x + np.sin(angle), 0.15 + np.cos(angle)), colour=WOOD, width=0.12)
    return canvas.pixels()


def pendulum(state: Any) -> np.ndarray:
    """The pendulum, upright where the angle is zero, and at its hub the torque."""
    canvas = Canvas(1.3)
    angle, torque = np.asarray(state.theta).item(), np.asarray(state.last_u).item()
    canvas.line((0, 0), (-np.sin(angle), np.cos(angle)), colour=WOOD, width=0.15)
    canvas.disc((0, 0), 0.06)
    turn = np.linspace(0, torque / 2 * np.pi / 2, 12)
    canvas.line(*zip(-0.25 * np.sin(turn), 0.25 * np.cos(turn), strict=True), colour=SIGN,
                width=0.05)
    return canvas.pixels()


def acrobot(state: Any) -> np.ndarray:
    """Both links, hanging from the hub, and the height to be reached."""
    canvas = Canvas(2.3)
    first, second = (np.asarray(x).item() for x in (state.joint_angle1, state.joint_angle2))
    elbow = np.array([np.sin(first), -np.cos(first)])
    hand = elbow + np.array([np.sin(first + second), -np.cos(first + second)])
    canvas.line((-2.3, 1), (2.3, 1), colour=SIGN)
    canvas.line((0, 0), elbow, colour=WOOD, width=0.15)
    canvas.line(elbow, hand, colour=WOOD, width=0.15)
    canvas.disc((0, 0), 0.08)
    canvas.disc(elbow, 0.08)
    return canvas.pixels()


def mountain_car(state: Any) -> np.ndarray:
    """The car in its valley, and the flag."""
    canvas = Canvas(1., (-0.3, 0.5))

    def height(x: Any) -> Any:
        return np.sin(3 * x) * 0.45 + 0.55

    x = np.linspace(-1.2, 0.6, 60)
    canvas.line(*zip(x, height(x), strict=True), colour=GROUND)
    canvas.line((0.5, height(0.5)), (0.5, height(0.5) + 0.2), (0.4, height(0.5) + 0.15),
                colour=SIGN)
    car = np.asarray(state.position).item()
    canvas.disc((car, height(car) + 0.06), 0.06)
    return canvas.pixels()


STATES: dict[str, Callable[[Any], np.ndarray]] = {
    "CartPole-v1": cart_pole, "Pendulum-v1": pendulum, "Acrobot-v1": acrobot,
    "MountainCar-v0": mountain_car, "MountainCarContinuous-v0": mountain_car}


def channels(observation: np.ndarray) -> np.ndarray:
    """A map of things [H, W, C], each of which has its channel and here a colour; the first ones
    are on top."""
    count = observation.shape[-1]
    image = np.zeros((*observation.shape[:2], 3), np.float32)
    for i in reversed(range(count)):
        image[observation[..., i] > 0.5] = colorsys.hsv_to_rgb(i / count, 0.75, 1.)
    return enlarged(image)


def enlarged(image: np.ndarray) -> np.ndarray:
    """Fields as squares of pixels, about `SIZE` in all."""
    times = max(1, SIZE // max(image.shape[:2]))
    return image.repeat(times, 0).repeat(times, 1)


def stones(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """A board [H, W] with the stones of two players, one's black and the other's white."""
    rows, columns = mine.shape
    canvas = Canvas(max(rows, columns) / 2, (columns / 2, rows / 2))
    canvas.box((0, 0), (columns, rows), "#e3c58f")
    for i in range(rows + 1):
        canvas.line((0, i), (columns, i), colour=GROUND, width=0.04)
    for j in range(columns + 1):
        canvas.line((j, 0), (j, rows), colour=GROUND, width=0.04)
    for held, colour in ((mine, INK), (theirs, "#ffffff")):
        for i, j in np.argwhere(held > 0.5):
            canvas.disc((j + 0.5, rows - i - 0.5), 0.43)
            canvas.disc((j + 0.5, rows - i - 0.5), 0.4, colour)
    return canvas.pixels()
