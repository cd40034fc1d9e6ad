"""The notebooks' pictures, drawn with Matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.patches import Rectangle
from scipy import fft

_BLUES = ["#dcebf7", "#9dc6e4", "#4f97c9", "#1f5f9a"]  # the oldest revision to the newest
_WRONG, _PLAIN, _NONE, _UNREAD = "#f6b26b", "#eef1f4", "#ffffff", "#ffffff"
_INK, _SOFT = "#222222", "#666666"
_WIDTH = 10.4

# Linux on x86-64: integers and pointers travel in six registers, the rest on the stack.
SLOTS = ["rdi", "rsi", "rdx", "rcx", "r8", "r9", "stack", "stack + 8", "stack + 16"]

plt.rcParams.update(
    {"font.family": "DejaVu Sans", "font.size": 9, "figure.dpi": 110, "text.color": _INK}
)


def _say_source(figure: Any, text: str, y: float = 0.0) -> None:
    figure.text(0, y, text, ha="left", va="top", color=_SOFT, style="italic", fontsize=8.5)


class Call(NamedTuple):
    """What stands in each argument slot of a call, seen from several sides.

    Attributes
    ----------
    title : str
        Above it all.
    sides : sequence of (str, sequence of str)
        Who looks, and the arguments in slot order.
    marked : set of int
        Slots to mark.
    """

    title: str
    sides: Sequence[tuple[str, Sequence[str]]]
    marked: set[int]


def draw_slots(calls: Sequence[Call], source: str) -> None:
    """Draw the arguments of calls, slot below slot."""
    box, left = 0.75, -2.3
    tops = np.cumsum([0, *(1.15 + box * len(call.sides) for call in calls)])
    figure = plt.figure(figsize=(_WIDTH, 0.55 * tops[-1]))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(left, len(SLOTS)), ylim=(tops[-1] - 0.3, -0.3))
    axes.axis("off")
    for call, top in zip(calls, tops[:-1], strict=True):
        axes.text(left, top, call.title, weight="bold", va="center", fontsize=10)
        for slot, name in enumerate(SLOTS):
            axes.text(slot + 0.5, top + 0.5, name, ha="center", color=_SOFT, fontsize=8)
        for row, (who, names) in enumerate(call.sides):
            y = top + 0.65 + box * row
            axes.text(left, y + 0.3, who, va="center")
            for slot, name in enumerate(names):
                color = _WRONG if slot in call.marked else _PLAIN
                axes.add_patch(Rectangle((slot + 0.02, y), 0.96, 0.6, fc=color, ec=_SOFT, lw=0.8))
                middle = {"ha": "center", "va": "center", "fontsize": 8}
                family = "DejaVu Sans Mono" if name.isidentifier() else "DejaVu Sans"
                axes.text(slot + 0.5, y + 0.3, name, family=family, **middle)
    _say_source(figure, source)


class Panel(NamedTuple):
    """One half of `draw_revisions`.

    Attributes
    ----------
    title : str
        Above the panel.
    columns : sequence of str
        Functions, as asked for.
    rows : sequence of sequence of (int, int) or None
        For each driver, for each function: which revision is given (0 is the oldest), and the
        number of its parameters; None if nothing is given.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[tuple[int, int] | None]]


def draw_revisions(panels: Sequence[Panel], drivers: Sequence[str], source: str) -> None:
    """Draw drivers by functions: the number of parameters of what is given."""
    figure, all_axes = plt.subplots(1, len(panels), figsize=(_WIDTH, 3.6), sharey=True)
    for axes, panel in zip(all_axes, panels, strict=True):
        for y, row in enumerate(panel.rows):
            for x, cell in enumerate(row):
                shade = _NONE if cell is None else _BLUES[cell[0]]
                axes.add_patch(Rectangle((x, y), 1, 1, fc=shade, ec="white", lw=2))
                ink = _SOFT if cell is None else "white" if shade == _BLUES[-1] else _INK
                text = "-" if cell is None else str(cell[1])
                axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", color=ink, fontsize=11)
        axes.set(xlim=(0, len(panel.columns)), ylim=(len(drivers), 0))
        axes.set_xticks(np.arange(len(panel.columns)) + 0.5, panel.columns)
        axes.set_yticks(np.arange(len(drivers)) + 0.5, drivers)
        for label in axes.get_xticklabels():
            label.set(rotation=35, ha="right", rotation_mode="anchor", fontsize=8.5)
        axes.tick_params(length=0)
        axes.set_title(panel.title, fontsize=10, weight="bold", loc="left")
        axes.spines[:].set_visible(False)
    all_axes[0].set_ylabel("driver")
    figure.subplots_adjust(left=0.06, right=1, top=0.92, bottom=0.3, wspace=0.06)
    key = "Number: parameters of the function given. Darker: a later revision. -: nothing is given."
    figure.text(0, 0, key, va="top", fontsize=8.5)
    _say_source(figure, source, y=-0.06)


Image = npt.NDArray[np.float32]


def turbulent_field(size: int) -> Image:
    """Compute a field to look at: noise whose power spectrum falls as ``k ** (-5 / 3)``.

    Parameters
    ----------
    size : int
        Points along each of the two axes.

    Returns
    -------
    ndarray of float32, shape (size, size)
        The same at every call, with mean 0 and standard deviation 1.
    """
    noise = np.random.default_rng(0).standard_normal((size, size))
    k = np.hypot(fft.fftfreq(size)[:, None], fft.rfftfreq(size)[None, :])
    k[0, 0] = np.inf  # no mean
    # In two dimensions a shell of radius k holds k modes, so amplitudes fall as k ** (-4 / 3).
    field = fft.irfft2(fft.rfft2(noise) * k ** (-4 / 3), s=noise.shape)
    scaled: Image = (field / field.std()).astype(np.float32)
    return scaled


def cut(image: Image, columns: int) -> Image:
    """Cut a square image into `columns` times `columns` square tiles."""
    size = image.shape[0] // columns
    tiles = image.reshape(columns, size, columns, size).swapaxes(1, 2)
    return tiles.reshape(columns**2, size, size)


def mosaic(tiles: Image, columns: int) -> Image:
    """Put square tiles side by side into one image."""
    count, size, _ = tiles.shape
    rows = tiles.reshape(count // columns, columns, size, size)
    return rows.swapaxes(1, 2).reshape(-1, columns * size)


def draw_images(images: Mapping[str, Image], source: str, height: float = 2.3) -> None:
    """Draw images in a row, on one scale of colours; what is NaN is left grey."""
    figure, all_axes = plt.subplots(1, len(images), figsize=(_WIDTH, height))
    limit = max(float(np.nanmax(np.abs(image))) for image in images.values())
    colors = plt.get_cmap("RdBu_r").copy()
    colors.set_bad("#d0d0d0")
    for axes, (title, image) in zip(all_axes, images.items(), strict=True):
        axes.imshow(image, cmap=colors, vmin=-limit, vmax=limit, interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    figure.subplots_adjust(left=0, right=1, top=0.9, bottom=0.02, wspace=0.08)
    _say_source(figure, source)


_MODE_COLORS = {"kernel": "#1b6ca8", "batch": "#c8553d", "loop": "#6a994e"}
_MODE_MARKERS = {"kernel": "o", "batch": "s", "loop": "^"}
_OUTSIDE = "#c8553d"


class Control(NamedTuple):
    """One cell's control: the same arm against itself.

    Attributes
    ----------
    us : float
        How long one run takes, in microseconds.
    ratio, low, high : float
        The ratio, and its interval.
    same : bool
        Whether the verdict is SAME.
    """

    us: float
    ratio: float
    low: float
    high: float
    same: bool


def draw_controls(controls: Sequence[Control], tolerance: float, source: str) -> None:
    """Draw the ratio of an arm to itself against the time of a run, with intervals."""
    figure, axes = plt.subplots(figsize=(_WIDTH, 3.2))
    axes.axhspan(1 - tolerance, 1 + tolerance, color=_PLAIN)
    axes.axhline(1, color=_SOFT, lw=0.8)
    words = {True: "SAME: the interval lies within 2 %", False: "not SAME: it reaches beyond"}
    for same, color in ((True, _BLUES[-1]), (False, _OUTSIDE)):
        some = [control for control in controls if control.same is same]
        if some:
            us, ratio, low, high, _ = map(np.array, zip(*some, strict=True))
            style = {"fmt": "o", "ms": 3.5, "lw": 1, "color": color}
            label = f"{words[same].replace('2 %', f'{tolerance:.0%}')} ({len(some)})"
            axes.errorbar(us, ratio, (ratio - low, high - ratio), label=label, **style)
    axes.set(xscale="log", xlabel="time of one run, us", ylabel="time over its own time")
    axes.set_title("The control of every cell", fontsize=10, weight="bold", loc="left")
    axes.legend(frameon=False, loc="upper right", fontsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)
    figure.subplots_adjust(left=0.07, right=1, top=0.92, bottom=0.16)
    _say_source(figure, source)


class Curve(NamedTuple):
    """One mode in one panel of `draw_times`.

    Attributes
    ----------
    mode : str
        The mode.
    counts : sequence of int
        Numbers of blocks.
    measured, predicted : sequence of float
        Microseconds.
    """

    mode: str
    counts: Sequence[int]
    measured: Sequence[float]
    predicted: Sequence[float]


def draw_times(panels: Mapping[str, Sequence[Curve]], source: str) -> None:
    """Draw measured and predicted times against the number of tiles, one panel a direction."""
    figure, all_axes = plt.subplots(1, len(panels), figsize=(_WIDTH, 3.6), sharey=True)
    for axes, (title, curves) in zip(all_axes, panels.items(), strict=True):
        for curve in curves:
            color, marker = _MODE_COLORS[curve.mode], _MODE_MARKERS[curve.mode]
            axes.plot(curve.counts, curve.predicted, color=color, lw=5, alpha=0.25)
            style = {"color": color, "marker": marker, "ms": 5, "lw": 1.5, "label": curve.mode}
            axes.plot(curve.counts, curve.measured, **style)
        counts = curves[0].counts
        axes.set(xscale="log", yscale="log", xlabel="tiles")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.set_title(title, fontsize=10, weight="bold", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left", reverse=True)
    all_axes[0].set_ylabel("us, call to completion")
    figure.subplots_adjust(left=0.07, right=1, top=0.92, bottom=0.15, wspace=0.08)
    key = "Thin: measured. Broad: predicted, as `explain` says it."
    figure.text(0, 0, key, va="top", fontsize=8.5)
    _say_source(figure, source, y=-0.06)
