"""Pictures as bytes: the confusion matrix of a trial, and small images of predictions."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from sft_mlflow.data.images import decode
from sft_mlflow.report.plots import ACCENT, BAD, INK, LINE, MUTED, drawable

# Beyond this, names and counts no longer fit into the cells' side of the picture.
NAMED_CLASSES = 24


def confusion_figure(confusion: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """The matrix as a picture: hits blue, mistakes red, each by its share of the true class.

    confusion: (classes, classes) counts, row is the true class. Up to NAMED_CLASSES classes it
    shows names and counts (`class 3` for a name that the font cannot write), beyond that indices.
    """
    count = len(classes)
    named = count <= NAMED_CLASSES
    side = min(9.0, 2.6 + 0.42 * count) if named else 6.4
    figure = Figure(figsize=(side, side * 0.94), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    share = confusion / np.maximum(1, confusion.sum(axis=1, keepdims=True))
    cells = np.empty((count, count, 4))
    cells[..., :3] = np.where(np.eye(count, dtype=bool)[..., None], to_rgb(ACCENT), to_rgb(BAD))
    # The root lets a single mistake among hundreds be seen.
    cells[..., 3] = np.sqrt(share)
    axes.imshow(cells, interpolation="nearest")
    axes.spines[:].set_color(LINE)
    axes.tick_params(length=0, labelcolor=INK if named else MUTED, labelsize=9)
    axes.set_xlabel("predicted", color=MUTED, fontsize=10)
    axes.set_ylabel("true", color=MUTED, fontsize=10)
    if named:
        names = [drawable(name, f"class {i}", 16) for i, name in enumerate(classes)]
        upright = max(map(len, names)) <= 2
        axes.set_xticks(range(count), names, rotation=0 if upright else 90)
        axes.set_yticks(range(count), names)
        for row, column in np.argwhere(confusion):
            dark = cells[row, column, 3] > 0.6
            axes.text(
                column,
                row,
                f"{confusion[row, column]}",
                ha="center",
                va="center",
                fontsize=9 if count <= 14 else 7,
                color="white" if dark else INK,
            )
    else:
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(10, integer=True))
    return figure


def confusion_png(confusion: NDArray[np.int64], classes: Sequence[str]) -> bytes:
    """The same picture as a PNG on white."""
    figure = confusion_figure(confusion, classes)
    stream = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(stream, format="png", dpi=110, facecolor="white")
    return stream.getvalue()


def thumbnail(path: Path, side: int = 160) -> bytes:
    """A JPEG of the whole picture whose longer side is at most `side` pixels.

    A picture of less than half of that is enlarged by a whole factor, so that its pixels show.
    Raises DataError where the file gives no pixels.
    """
    picture = decode(path, shorter_side=side)
    factor = side // max(picture.size)
    if factor > 1:
        larger = (picture.width * factor, picture.height * factor)
        picture = picture.resize(larger, Image.Resampling.NEAREST)
    picture.thumbnail((side, side))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=88)
    return stream.getvalue()
