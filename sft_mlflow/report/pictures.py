"""The confusion matrix as a picture."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sft_mlflow.report.plots import ACCENT, BAD, INK, LINE, MUTED, drawable
from sft_mlflow.report.wording import compact
from sft_mlflow.tasks.figures import Confusion

# Beyond this, names and counts no longer fit into the cells' side of the picture.
NAMED_CLASSES = 24


def confusion_figure(confusion: Confusion) -> Figure:
    """The matrix as a picture: hits blue, mistakes red, each by its share of the true class.

    Up to NAMED_CLASSES classes it shows names and counts (`class 3` for a name that the font cannot
    write), beyond that indices.
    """
    counts, count = confusion.counts, len(confusion.names)
    named = count <= NAMED_CLASSES
    side = min(9.0, 2.6 + 0.42 * count) if named else 6.4
    figure = Figure(figsize=(side, side * 0.94), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
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
        names = [drawable(name, f"class {i}", 16) for i, name in enumerate(confusion.names)]
        upright = max(map(len, names)) <= 2
        axes.set_xticks(range(count), names, rotation=0 if upright else 90)
        axes.set_yticks(range(count), names)
        for row, column in np.argwhere(counts):
            dark = cells[row, column, 3] > 0.6
            axes.text(
                column,
                row,
                compact(int(counts[row, column])),
                ha="center",
                va="center",
                fontsize=9 if count <= 14 else 7,
                color="white" if dark else INK,
            )
    else:
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(10, integer=True))
    return figure


def confusion_png(confusion: Confusion) -> bytes:
    """The same picture as a PNG on white."""
    figure = confusion_figure(confusion)
    stream = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(stream, format="png", dpi=110, facecolor="white")
    return stream.getvalue()
