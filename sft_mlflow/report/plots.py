"""The report's plots, as matplotlib figures and as SVG that follows the page's theme."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import cycle

import matplotlib
import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from sft_mlflow.report.tables import TrialRow, best_so_far
from sft_mlflow.report.wording import shortened
from sft_mlflow.tasks.figures import Bin, Curve

# Real colours, so that a figure can be saved as it is; `svg` hands them over to the page.
INK, MUTED, LINE, ACCENT, BAD = "#1c2127", "#68707a", "#d8dce1", "#0b66c3", "#c4462f"
_THEMED = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    ACCENT: "var(--accent)",
    BAD: "var(--bad)",
}

_MARKERS = "osD^v<>PX"

# As many as a legend has room for.
_NAMED_CURVES = 10

# The ends of viridis vanish on black and on white.
_VALUES: Colormap = ListedColormap(colormaps["viridis"](np.linspace(0.12, 0.92, 24)))


def svg(figure: Figure, label: str) -> str:
    """An `<svg>` element to stand inside HTML, its colours taken from the page's CSS variables.

    label: what the figure shows, for readers who cannot see it. Safe to insert unescaped: label
    and every text in the figure are escaped here.
    """
    stream = io.StringIO()
    # Text stays text, in the page's font; there is no argument for this, only the setting.
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        FigureCanvasSVG(figure)
        empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", metadata=empty)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text, count=2)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    for colour, variable in _THEMED.items():
        text = text.replace(colour, variable)
    # Ids must be unique in the page, and the same report must give the same bytes.
    prefix = "".join(c if c.isalnum() else "-" for c in label.lower())
    place: dict[str, int] = {}
    text = re.sub(
        r'( id="|href="#|url\(#)([^")]+)',
        lambda found: f"{found[1]}{prefix}-{place.setdefault(found[2], len(place))}",
        text,
    )
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)


def history(trials: Sequence[TrialRow], best: int | None, objective: str) -> Figure:
    """The value of each trial by its number, and the best so far."""
    figure, axes = _figure(5.6, 3.3)
    ordered = sorted(trials, key=lambda trial: trial.number)
    steps = [
        (trial.number, value)
        for trial, value in zip(ordered, best_so_far(ordered), strict=True)
        if value is not None
    ]
    if steps:
        axes.step(
            *zip(*steps, strict=True), where="post", color=ACCENT, lw=1.6, label="best so far"
        )
    done = [t for t in ordered if t.state == "COMPLETE" and t.value is not None]
    pruned = [t for t in ordered if t.state == "PRUNED" and t.value is not None]
    failed = [t for t in ordered if t.state == "FAIL"]
    if done:
        axes.plot(*_points(done), "o", color=ACCENT, ms=6, label="finished")
    if pruned:
        axes.plot(*_points(pruned), "o", mfc="none", mec=MUTED, ms=6, label="pruned")
    if failed:
        # On the lower edge, since a failed trial has no value.
        axes.plot(
            [trial.number for trial in failed],
            [0.03] * len(failed),
            "x",
            color=BAD,
            ms=7,
            mew=1.8,
            transform=axes.get_xaxis_transform(),
            clip_on=False,
            label="failed",
        )
    for trial in done:
        if trial.number == best:
            axes.plot(*_points([trial]), "o", mfc="none", mec=INK, ms=12, mew=1.5, label="best")
    if not done and not pruned:
        axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial")
    axes.set_ylabel(f"validation {objective}")
    axes.margins(y=0.14)
    axes.set_xlim(ordered[0].number - 0.6, ordered[-1].number + 0.6)
    _legend(figure, axes)
    return figure


def importance(shares: Mapping[str, float]) -> Figure:
    """One bar for each searched dimension, the most important on top."""
    ordered = sorted(shares.items(), key=lambda item: item[1])
    figure, axes = _figure(9.0, 0.35 + 0.34 * len(ordered))
    names = [name for name, _ in ordered]
    values = [share for _, share in ordered]
    bars = axes.barh(names, values, color=ACCENT, height=0.55)
    axes.bar_label(bars, [f"{value:.0%}" for value in values], padding=5, color=INK, fontsize=10)
    axes.set_xlim(0, max(1e-9, max(values)) * 1.12)
    axes.xaxis.set_visible(False)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", labelsize=10, labelcolor=INK)
    return figure


def lr_against_depth(trials: Sequence[TrialRow], best: int | None, objective: str) -> Figure:
    """Unfreeze depth against learning rate, coloured by the objective's value.

    A trial without a learning rate (a probe) stands at the left edge. Several sources have a
    marker each. Trials without a value are left out.
    """
    figure, axes = _figure(5.6, 3.3)
    shown = [trial for trial in trials if trial.value is not None]
    rates = [trial.lr for trial in shown if trial.lr is not None]
    lowest, highest = (min(rates), max(rates)) if rates else (1e-4, 1e-3)
    room = max(highest / lowest, 2.0) ** 0.12
    left = lowest / room**2
    values = [trial.value for trial in shown if trial.value is not None]
    scale = Normalize(min(values, default=0.0), max(values, default=1.0))
    sources = list(dict.fromkeys(trial.source for trial in shown))
    for place, (source, marker) in enumerate(zip(sources, cycle(_MARKERS), strict=False)):
        for state, edge in (("PRUNED", MUTED), ("COMPLETE", "none")):
            group = [t for t in shown if t.source == source and t.state == state]
            axes.scatter(
                [left if trial.lr is None else trial.lr for trial in group],
                [trial.depth for trial in group],
                c=[float(trial.value or 0.0) for trial in group],
                cmap=_VALUES,
                norm=scale,
                marker=marker,
                s=70,
                linewidths=1.4 if state == "PRUNED" else 0,
                edgecolors=edge,
                zorder=3,
            )
        if len(sources) > 1:
            name = drawable(source, f"source {place + 1}", 40)
            axes.scatter(
                [],
                [],
                color=MUTED,
                marker=marker,
                s=50,
                label=name,
            )
    for trial in shown:
        if trial.number == best:
            rate = left if trial.lr is None else trial.lr
            axes.plot([rate], [trial.depth], "o", mfc="none", mec=INK, ms=14, mew=1.5, zorder=4)
    if any(trial.lr is None for trial in shown):
        axes.axvline(lowest / room, color=LINE, lw=1, ls=(0, (4, 3)))
    axes.set_xscale("log")
    axes.set_xlim(left / room, highest * room)
    _learning_rate_ticks(axes, left if any(t.lr is None for t in shown) else None, lowest, highest)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axes.margins(y=0.12)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("stages trained")
    bar = figure.colorbar(
        ScalarMappable(scale, _VALUES), ax=axes, pad=0.02, fraction=0.04, aspect=28
    )
    bar.set_label(f"validation {objective}", color=MUTED, fontsize=10)
    bar.ax.tick_params(length=0, labelcolor=MUTED, labelsize=9)
    bar.outline.set_visible(False)
    # Else the page shows through the seams between the colours.
    if bar.solids is not None:
        bar.solids.set_edgecolor("face")
    if len(sources) > 1:
        _legend(figure, axes)
    return figure


def reliability(before: Sequence[Bin], after: Sequence[Bin], ece: tuple[float, float]) -> Figure:
    """Accuracy against confidence, and how many images each bin has, before and after scaling."""
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    figure.patch.set_alpha(0)
    tops = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(4, 1))
    total = max(1, sum(part.count for part in before))
    for column, (bins, title, error) in enumerate(
        ((before, "before scaling", ece[0]), (after, "after scaling", ece[1]))
    ):
        top, bottom = tops[0, column], tops[1, column]
        left = [part.low for part in bins]
        widths = [(part.high - part.low) * 0.9 for part in bins]
        for axes in (top, bottom):
            _plain(axes)
        top.plot([0, 1], [0, 1], color=MUTED, lw=1, ls=(0, (4, 3)))
        top.bar(left, [part.accuracy for part in bins], widths, align="edge", color=ACCENT)
        top.plot(
            [part.confidence for part in bins],
            [part.accuracy for part in bins],
            "o",
            color=INK,
            ms=4,
        )
        top.set_title(f"{title}: ECE {error:.4f}", color=INK, fontsize=10, loc="left")
        top.set(xlim=(0, 1), ylim=(0, 1.03))
        bottom.bar(left, [part.count / total for part in bins], widths, align="edge", color=MUTED)
        bottom.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        bottom.yaxis.set_major_locator(MaxNLocator(2))
        bottom.set_xlabel("confidence")
    tops[0, 0].set_ylabel("accuracy")
    tops[1, 0].set_ylabel("images")
    return figure


def precision_over_recall(curves: Sequence[Curve]) -> Figure:
    """Precision against recall, a line for each class, those of the largest area named."""
    figure, axes = _figure(9.6, 3.6)
    best = sorted(curves, key=lambda curve: -float(curve.precision.mean()))
    for number, curve in enumerate(best):
        name = drawable(curve.name, f"class {number}", 20)
        label = f"{name} {curve.precision.mean():.3f}" if number < _NAMED_CURVES else None
        axes.plot(curve.recall, curve.precision, lw=1.4, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.03))
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    _legend(figure, axes)
    return figure


def drawable(text: str, instead: str, most: int) -> str:
    """The text, shortened, or `instead` where matplotlib's own font lacks a character of it."""
    if not _characters().issuperset(text):
        return instead
    # A dollar would begin mathematics.
    return shortened(text, most).replace("$", r"\$")


@cache
def _characters() -> frozenset[str]:
    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return frozenset(map(chr, font.get_charmap()))


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.patch.set_alpha(0)
    axes.grid(axis="y", color=LINE, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(length=0, labelcolor=MUTED, labelsize=9, which="both")
    axes.xaxis.label.set(color=MUTED, fontsize=10)
    axes.yaxis.label.set(color=MUTED, fontsize=10)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        figure.legend(
            loc="outside upper left",
            ncols=5,
            frameon=False,
            fontsize=9,
            labelcolor=INK,
            handletextpad=0.4,
            columnspacing=1.4,
        )


def _points(trials: Sequence[TrialRow]) -> tuple[list[int], list[float]]:
    return [t.number for t in trials], [
        float("nan") if t.value is None else t.value for t in trials
    ]


def _learning_rate_ticks(axes: Axes, probe: float | None, lowest: float, highest: float) -> None:
    decades = range(math.floor(math.log10(lowest)), math.ceil(math.log10(highest)) + 1)
    steps = (1,) if highest / lowest > 1000 else (1, 3) if highest / lowest > 30 else (1, 2, 5)
    ticks = [s * 10.0**d for d in decades for s in steps]
    ticks = [tick for tick in ticks if lowest * 0.95 <= tick <= highest * 1.05]
    if len(ticks) < 2:
        ticks = sorted({lowest, highest})
    names = [f"{tick:.1e}".replace(".0e", "e").replace("e-0", "e-") for tick in ticks]
    if probe is not None:
        ticks, names = [probe, *ticks], ["probe", *names]
    axes.set_xticks(ticks, names)
    axes.xaxis.set_minor_locator(NullLocator())
