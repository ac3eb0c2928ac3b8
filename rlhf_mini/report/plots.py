"""The report's plots, as SVG in the colours of the page around them.

Matplotlib draws with placeholder colours, and each placeholder is then replaced by a CSS variable, so that one drawing
serves light mode, dark mode and print. Series also differ in marker and line style, never in colour alone. Text stays
text, in the font of the page; only its width is guessed. The same numbers give the same bytes.
"""

import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from markupsafe import Markup

from rlhf_mini.core.bootstrap import Estimate
from rlhf_mini.core.files import is_number
from rlhf_mini.core.texts import Texts
from rlhf_mini.evaluation.answers import JUDGES, PAIRS
from rlhf_mini.evaluation.overopt.curves import distance
from rlhf_mini.evaluation.schema import Fit, Point, PooledEvaluation, Scenario
from rlhf_mini.evaluation.tables import percent

# Placeholder -> what the page has in its place. Nothing else is drawn in these colours.
PAINT = {
    "#010203": "currentColor",
    "#010204": "var(--rule)",
    "#010301": "var(--s1)",
    "#010302": "var(--s2)",
    "#010303": "var(--s3)",
    "#010304": "var(--s4)",
    "#010305": "var(--s5)",
    "#010306": "currentColor",
}
TEXT, RULE, *SERIES = PAINT
STAR = len(SERIES) - 1  # the style of the run's own PPO among the curves
MARKERS, LINES = "osD^v*", ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
PANEL = (4.2, 2.7)  # inches: readable on a phone, and three side by side on a projector

SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "rlhf_mini", "font.size": 10, "font.family": "DejaVu Sans",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": RULE, "grid.linewidth": 0.6,
    "text.color": TEXT, "axes.labelcolor": TEXT, "axes.edgecolor": TEXT, "xtick.color": TEXT, "ytick.color": TEXT,
    "legend.frameon": False, "legend.fontsize": 9, "axes.axisbelow": True,
    "path.simplify_threshold": 0.5, "text.parse_math": False,
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """A line in a plot."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: int = 0
    """Index of its colour, marker and line style."""
    errors: Sequence[tuple[float, float]] | None = None
    """(low, high) of each point."""
    marked: bool = False
    """Draws a marker at each point."""
    lined: bool = True
    """Draws a line through the points."""
    window: int = 1
    """Width of the line's moving average; above 1, the raw points are drawn too, faintly."""


# --- the report's plots -----------------------------------------------------------------------------------------------


def win_rates(evaluation: PooledEvaluation, texts: Texts) -> Markup:
    """The win rate of each pair of stages by each judge."""
    judges = {judge: texts.of(f"judge.{judge}", title) for judge, title in JUDGES.items()}
    rows = [
        (
            texts.of(f"pair.{pair}", title),
            [(judges[judge], rates[pair]) for judge, rates in evaluation.win_rates.items()],
        )
        for pair, title in PAIRS.items()
    ]
    words = "; ".join(
        f"{title}: " + ", ".join(f"{judge} {percent(estimate.mean)}" for judge, estimate in estimates)
        for title, estimates in rows
    )
    return intervals_panel(f"{texts('wins.plot')} {words}", texts("wins.axis"), rows)


def learning_curves(
    metrics: dict[str, list[dict[str, Any]]], rm_results: dict[str, Any], texts: Texts
) -> list[tuple[str, Markup, str]]:
    """Title, plot and caption of each training metric; a metric that a stage did not log is left out.

    Args:
        metrics: the lines of each stage's metrics.jsonl.
        rm_results: the metrics in the reward model's stage.json.
    """

    def curve(stage: str, key: str, label: str = "", style: int = 0, **look: Any) -> Series:
        return Series(texts(f"curves.{label}") if label else key, *finite(metrics[stage], "step", key), style, **look)

    found = rm_results.get("agreement/training")
    agreement = found.get("share") if isinstance(found, dict) else None
    level = (agreement, texts("curves.agreement")) if is_number(agreement) else None
    sft = [
        curve("sft", "loss/demonstrations", "training", window=15),
        curve("sft", "eval_loss", "held_out", 1, marked=True),
    ]
    curves = {
        "sft_loss": sft,
        "rm_loss": [curve("rm", "loss", "training", window=15)],
        "rm_accuracy": [curve("rm", "accuracy", "training", window=15)],
        "ppo_score": [curve("ppo", "objective/scores")],
        "ppo_kl": [curve("ppo", "objective/kl")],
        "ppo_length": [curve("ppo", "response/length")],
        "ppo_finished": [curve("ppo", "response/eos_rate")],
        "ppo_entropy": [curve("ppo", "policy/entropy")],
        "ppo_explained": [curve("ppo", "value/explained_variance")],
    }
    drawn = []
    for number, (name, series) in enumerate(curves.items()):
        if not series[0].y:
            continue
        title, unit, caption = (texts(f"curve.{name}.{part}") for part in ("title", "unit", "caption"))
        words = texts("curves.text", title=title, first=f"{series[0].y[0]:.2f}", last=f"{series[0].y[-1]:.2f}")
        x_label = texts("curves.iteration" if name.startswith("ppo") else "curves.step")
        line = level if name == "rm_accuracy" else None
        drawn.append((title, panel(f"curve-{number}", words, x_label, unit, series, line), caption))
    return drawn


def over_optimization(scenario: Scenario, number: int, texts: Texts) -> dict[str, Any]:
    """Title and text of a scenario, and its plots of proxy and gold over sqrt(KL)."""
    title, what = (texts.of(f"scenario.{scenario.name}.{part}", getattr(scenario, part)) for part in ("title", "what"))
    names = {"proxy": texts.of("scenario.proxy", scenario.proxy_name), "gold": texts("overopt.gold_score")}
    curves = [
        (texts("overopt.best_of_n"), scenario.best_of_n),
        *(
            (texts("overopt.ppo_default" if curve.default else "overopt.ppo", kl_coef=f"{curve.kl_coef:g}"), curve)
            for curve in scenario.ppo
        ),
    ]
    recipe = texts("overopt.recipe" if scenario.name == "default" else "overopt.recipe_own_rm")
    plots = []
    for judge, score in names.items():
        series = []
        for style, (label, curve) in enumerate(curves):
            by_ppo = curve is not scenario.best_of_n
            series += optimized(judge, style % STAR, label, curve.points, curve.fit[judge], by_ppo)
        series += optimized(judge, STAR, recipe, [scenario.recipe])
        words = texts("overopt.text", scenario=title, score=score)
        name = f"overopt-{number}-{judge}"
        plots.append((score, panel(name, words, texts("overopt.axis"), texts("overopt.gain", score=score), series)))
    return {"title": title[:1].upper() + title[1:], "what": what, "plots": plots}


def optimized(
    judge: str, style: int, label: str, points: Sequence[Point], fit: Fit | None = None, by_ppo: bool = True
) -> list[Series]:
    """The points of one way to optimise and the curve fitted to them; without a fit, a line joins the points."""
    distances = [distance(point) for point in points]
    gains: list[Estimate] = [getattr(point, judge) for point in points]
    fitted = fit is not None and not math.isnan(fit.a)
    means, errors = [gain.mean for gain in gains], [(gain.low, gain.high) for gain in gains]
    series = [Series(label, distances, means, style, errors, marked=True, lined=not fitted and len(points) > 1)]
    if fit and fitted:
        steps = [max(distances) * step / 40 for step in range(41)]
        line = [fitted_gain(fit, step, by_ppo) for step in steps]
        series.append(Series("_fit", steps, line, style))  # matplotlib leaves names with _ out of the legend
    return series


def fitted_gain(fit: Fit, d: float, by_ppo: bool) -> float:
    """Gao et al. 2022, arXiv 2210.10760, equation 1: d (a - b d) for best of n, d (a - b log d) for RL."""
    if by_ppo:
        return d * (fit.a - fit.b * math.log(d)) if d > 0 else 0.0
    return d * (fit.a - fit.b * d)


# --- drawing ---------------------------------------------------------------------------------------------------------


def panel(
    name: str, title: str, x_label: str, y_label: str, series: Sequence[Series], level: tuple[float, str] | None = None
) -> Markup:
    """One plot. `name` is unique in the page, `title` is its text alternative, `level` a labelled horizontal line."""
    with settings():
        legend = len({line.label for line in series if line.label[0] != "_"}) + bool(level)
        figure, axes = canvas(PANEL, legend_rows=(legend + 1) // 2 if legend > 1 else 0)
        for line in series:
            colour, marker = SERIES[line.style], MARKERS[line.style] if line.marked else ""
            look: dict[str, Any] = {
                "color": colour,
                "label": line.label,
                "marker": marker,
                "markersize": 8 if marker == "*" else 5,
            }
            look |= {"linestyle": LINES[line.style] if line.lined else "", "linewidth": 1.8}
            if line.errors:
                low, high = zip(*line.errors, strict=True)
                below = [max(0.0, y - bound) for y, bound in zip(line.y, low, strict=True)]
                above = [max(0.0, bound - y) for y, bound in zip(line.y, high, strict=True)]
                axes.errorbar(line.x, line.y, yerr=[below, above], elinewidth=1, capsize=2, **look)
            else:
                if line.window > 1:
                    axes.plot(line.x, line.y, color=colour, linewidth=0.7, alpha=0.35)
                axes.plot(line.x, running_mean(line.y, line.window), **look)
        if level:
            axes.axhline(level[0], color=TEXT, linewidth=1, linestyle=":", label=level[1])
        axes.locator_params(nbins=6)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if legend > 1:
            figure.legend(loc="lower center", ncols=2, handlelength=2.6, columnspacing=1, borderaxespad=0.1)
        return to_svg(figure, name, title)


def intervals_panel(title: str, x_label: str, rows: Sequence[tuple[str, Sequence[tuple[str, Estimate]]]]) -> Markup:
    """Win rates as points with intervals: (pair, [(judge, share)]) from top to bottom. A dotted line marks 50%."""
    with settings():
        figure, axes = canvas((4.2, 0.9 + 0.75 * len(rows)), left=1.15, top=0.4)
        axes.axvline(50, color=TEXT, linewidth=1, linestyle=":")
        for row, (_, shares) in enumerate(rows):
            for number, (judge, share) in enumerate(shares):
                mean = 100 * share.mean
                error = [[max(0.0, mean - 100 * share.low)], [max(0.0, 100 * share.high - mean)]]
                y = row + 0.24 * (number - (len(shares) - 1) / 2)
                axes.errorbar(
                    [mean], [y], xerr=error, color=SERIES[number], marker=MARKERS[number], markersize=5,
                    elinewidth=1.6, capsize=3, linestyle="", label=judge if row == 0 else None,
                )  # fmt: skip
        axes.set_yticks(range(len(rows)), [pair for pair, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, 101)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(x_label)
        figure.legend(loc="upper center", ncols=3, handletextpad=0.3, columnspacing=1.2, borderaxespad=0.1)
        return to_svg(figure, "win-rates", title)


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """The mean of the `width` values around each value, of fewer at the ends."""
    half = width // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def finite(points: Sequence[dict[str, Any]], x: str, y: str) -> tuple[list[float], list[float]]:
    """The values under two keys of all points that have a finite number under both."""
    pairs = [(point[x], point[y]) for point in points if all(is_number(point.get(key)) for key in (x, y))]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def canvas(size: tuple[float, float], left: float = 0.72, top: float = 0.1, legend_rows: int = 0) -> tuple[Any, Any]:
    """An empty matplotlib figure and its axes, which take the same place in all figures of a size, in inches."""
    from matplotlib.figure import Figure  # importing matplotlib takes half a second; --help does not wait for it

    width, height = size[0], size[1] + 0.22 * legend_rows
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(left / width, (0.5 + 0.22 * legend_rows) / height, 1 - 0.1 / width, 1 - top / height)
    return figure, figure.subplots()


def settings() -> Any:
    """The context in which plots are drawn."""
    from matplotlib import rc_context

    return rc_context(SETTINGS)  # type: ignore[arg-type]


def to_svg(figure: Any, name: str, title: str) -> Markup:
    file = io.StringIO()
    with warnings.catch_warnings():
        # DejaVu Sans has no Hangul. Matplotlib takes the width of its placeholder, which is a little wider, and the
        # browser has a font.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return inline(file.getvalue(), name, title)


def inline(svg: str, name: str, title: str) -> Markup:
    """An SVG file as part of a page: without its header, with unique ids, and in the page's colours."""

    def adapted(tag: re.Match[str]) -> str:
        text = re.sub(r'\bid="', f'id="{name}-', tag[0])
        text = re.sub(r'(xlink:)?href="#', f'href="#{name}-', text)
        text = text.replace("url(#", f"url(#{name}-").replace("'DejaVu Sans'", "inherit")
        for placeholder, paint in PAINT.items():
            text = text.replace(placeholder, paint)
        return re.sub(r"(\d\.\d\d)\d+", r"\1", text)  # no screen shows less than 0.01 pt

    svg = re.sub(
        r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL
    )
    svg = re.sub(r">\s+<", "><", re.sub(r"<[^>]+>", adapted, svg))  # text between tags is not changed
    view = re.search(r'viewBox="[^"]+"', svg)
    head = f'<svg role="img" aria-label="{escape(title, quote=True)}" {view[0] if view else ""}>'
    return Markup(head + svg[svg.index(">") + 1 :])
