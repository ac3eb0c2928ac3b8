"""The report's figures, as SVG that takes its colours from the page around it.

Matplotlib draws with placeholder colours, and each placeholder then becomes a CSS variable, so that one drawing serves
light, dark and paper. No two series differ by colour alone: markers and line styles go with it. Text stays text.
The same numbers give the same bytes.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from markupsafe import Markup

from rlhf_mini.evaluation import overopt
from rlhf_mini.evaluation.evaluate import JUDGES, PAIRS

Figure = dict[str, float | None]  # mean, low, high

# Placeholder -> what the page says instead. The placeholders are colours that nothing else is drawn in.
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
MARKERS, LINES = "osD^v*", ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
PANEL = (4.2, 2.7)  # inches: readable at a phone's width, and three side by side on a projector

SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "rlhf_mini", "font.size": 10, "font.family": "DejaVu Sans",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": RULE, "grid.linewidth": 0.6,
    "text.color": TEXT, "axes.labelcolor": TEXT, "axes.edgecolor": TEXT, "xtick.color": TEXT, "ytick.color": TEXT,
    "legend.frameon": False, "legend.fontsize": 9, "axes.axisbelow": True,
    "path.simplify_threshold": 0.5, "text.parse_math": False,
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """A line of a panel."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: int = 0
    """Which colour, marker and line style."""
    errors: Sequence[tuple[float, float]] | None = None
    """Low and high of each point."""
    marked: bool = False
    """A marker at each point."""
    lined: bool = True
    """A line through the points."""
    smoothed: int = 1
    """Over how many points the line averages; the single ones stay visible, faintly."""


# --- the report's figures -------------------------------------------------------------------------------------------


def ladder(evaluated: dict[str, Any]) -> Markup:
    """Who wins how often, by each judge; nothing if nobody judged."""
    rates = evaluated.get("win_rates", {})
    judged = [judge for judge in JUDGES if rates.get(judge)]
    if not judged:
        return Markup("")
    rungs = [
        (title, [(JUDGES[judge], rates[judge].get(pair) or {}) for judge in judged]) for pair, title in PAIRS.items()
    ]
    told = "; ".join(
        f"{title}: " + ", ".join(f"{judge} {in_words(figure)}" for judge, figure in figures) for title, figures in rungs
    )
    return rungs_panel(f"Win rates with 95 % intervals. {told}", rungs)


def learning_curves(
    lines: dict[str, list[dict[str, Any]]], infos: dict[str, dict[str, Any]]
) -> list[tuple[str, Markup, str]]:
    """Title, plot and how to read it, of what the stages logged; a metric that a stage did not log is left out."""

    def curve(stage: str, key: str, label: str = "", style: int = 0, **look: Any) -> Series:
        return Series(label or key, *finite(lines[stage], "step", key), style, **look)

    agreed = infos["rm"].get("metrics", {}).get("agreement/training", {}).get("share")
    level = None if agreed is None else (agreed, "labelers among themselves")
    sft = [curve("sft", "loss", "training", smoothed=15), curve("sft", "eval_loss", "kept aside", 1, marked=True)]
    curves: list[tuple[str, str, list[Series], str]] = [
        ("SFT: loss", "nats a token", sft,
         "Falls while the model learns to write like the demonstrations. Trouble would be the loss on those kept aside "
         "rising while the training loss still falls."),
        ("RM: loss", "nats a pair", [curve("rm", "loss", "training", smoothed=15)],
         "Starts near 0.69, which is guessing (ln 2), and falls as the model learns what labelers prefer."),
        ("RM: accuracy", "share of pairs", [curve("rm", "accuracy", "training", smoothed=15)],
         "The share of pairs it orders as the labeler did. A second labeler would at the line; a model that learns "
         "from many can be better than one of them."),
        ("PPO: score", "score", [curve("ppo", "objective/scores")],
         "What PPO is paid for. It should rise and level off, and says nothing of whether gold rises too."),
        ("PPO: KL to SFT", "nats a response", [curve("ppo", "objective/kl")],
         "How far PPO has moved from SFT. A curve that keeps climbing is a model on its way to fooling the RM."),
        ("PPO: length", "tokens", [curve("ppo", "response/length")],
         "Reward models often like long answers; a length that drifts to the limit is a warning."),
        ("PPO: ends by itself", "share of responses", [curve("ppo", "response/eos_rate")],
         "The share of responses that end before they are cut; it should be near 1."),
        ("PPO: entropy", "nats a token", [curve("ppo", "policy/entropy")],
         "How freely the policy still chooses its next token; near 0 it says the same thing every time."),
        ("PPO: explained variance", "share", [curve("ppo", "value/explained_variance")],
         "How much of the returns the value model foresees. Near 1 the advantages are precise; at 0 it is no help."),
    ]  # fmt: skip
    shown = []
    for number, (title, unit, series, how) in enumerate(curves):
        if not series[0].y:
            continue
        words = f"{title}, from {series[0].y[0]:.2f} to {series[0].y[-1]:.2f}"
        x = "update" if title.startswith("PPO") else "step"
        drawn = panel(f"curve-{number}", words, x, unit, series, level if title == "RM: accuracy" else None)
        shown.append((title, drawn, how))
    return shown


def over_optimization(scenario: dict[str, Any], number: int) -> dict[str, Any]:
    """A scenario's words, and its plots of proxy and gold over sqrt(KL)."""
    tries = [(title, tried, title != "best of n") for title, tried in overopt.curves(scenario)]
    if scenario.get("recipe"):
        of = "" if scenario.get("name") == "default" else ", own RM"
        tries.append((f"this run's PPO{of}", {"points": [scenario["recipe"]]}, True))
    plotted = []
    for judge, title in (("proxy", scenario.get("proxy_name") or "proxy"), ("gold", "gold score")):
        star = len(SERIES) - 1
        styles = [star if tried[0].startswith("this") else place % star for place, tried in enumerate(tries)]
        series = [line for style, tried in zip(styles, tries, strict=True) for line in optimized(judge, style, *tried)]
        words = f"{scenario.get('title', '')}: gain of {title} over SFT, by the square root of the KL to SFT"
        name = f"overopt-{number}-{judge}"
        plotted.append((title, panel(name, words, "√KL to SFT, √nats", f"gain in {title}", series)))
    title = str(scenario.get("title") or scenario.get("name", ""))
    return {"title": title[:1].upper() + title[1:], "what": scenario.get("what", ""), "plots": plotted}


def optimized(judge: str, style: int, label: str, tried: dict[str, Any], by_ppo: bool) -> list[Series]:
    """The points of one way to optimise, and the line that was fitted to them; without a fit, a line through them."""
    points = [p for p in tried.get("points", []) if p.get("kl") is not None and p[judge].get("mean") is not None]
    if not points:
        return []
    distances = [math.sqrt(max(0.0, point["kl"])) for point in points]
    means = [point[judge]["mean"] for point in points]
    errors = []
    for mean, point in zip(means, points, strict=True):
        low, high = (point[judge].get(end) for end in ("low", "high"))
        errors.append((mean if low is None else low, mean if high is None else high))
    fit = (tried.get("fit") or {}).get(judge) or {}
    fitted = fit.get("a") is not None and fit.get("b") is not None
    series = [Series(label, distances, means, style, errors, marked=True, lined=not fitted and len(points) > 1)]
    if fitted:
        steps = [max(distances) * step / 40 for step in range(41)]
        line = [fitted_gain(fit, distance, by_ppo) for distance in steps]
        series.append(Series("_fit", steps, line, style))  # matplotlib leaves names with _ out of the legend
    return series


def fitted_gain(fit: dict[str, float], distance: float, by_ppo: bool) -> float:
    """Gao et al. 2022, arXiv 2210.10760, equation 1: d (a - b d) for best of n, d (a - b log d) for RL."""
    if by_ppo:
        return distance * (fit["a"] - fit["b"] * math.log(distance)) if distance > 0 else 0.0
    return distance * (fit["a"] - fit["b"] * distance)


# --- how they are drawn ---------------------------------------------------------------------------------------------


def panel(
    name: str, title: str, x_label: str, y_label: str, series: Sequence[Series], level: tuple[float, str] | None = None
) -> Markup:
    """One plot of some series; `level` is a horizontal line with its words. `name` is unique in the page."""
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
                if line.smoothed > 1:
                    axes.plot(line.x, line.y, color=colour, linewidth=0.7, alpha=0.35)
                axes.plot(line.x, running_mean(line.y, line.smoothed), **look)
        if level:
            axes.axhline(level[0], color=TEXT, linewidth=1, linestyle=":", label=level[1])
        axes.locator_params(nbins=6)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if legend > 1:
            figure.legend(loc="lower center", ncols=2, handlelength=2.6, columnspacing=1, borderaxespad=0.1)
        return to_svg(figure, name, title)


def rungs_panel(title: str, rungs: Sequence[tuple[str, Sequence[tuple[str, Figure]]]]) -> Markup:
    """Win rates as points with intervals: (pair, [(judge, share)]) from top to bottom, and the line of a fair coin."""
    with settings():
        figure, axes = canvas((4.2, 0.9 + 0.75 * len(rungs)), left=1.15, top=0.4)
        axes.axvline(50, color=TEXT, linewidth=1, linestyle=":")
        for row, (_, judged) in enumerate(rungs):
            for number, (judge, share) in enumerate(judged):
                mean, low, high = (share.get(end) for end in ("mean", "low", "high"))
                if mean is None:
                    continue
                low, high = mean if low is None else low, mean if high is None else high
                bars = [[max(0.0, 100 * (mean - low))], [max(0.0, 100 * (high - mean))]]
                place = row + 0.24 * (number - (len(judged) - 1) / 2)
                axes.errorbar(
                    [100 * mean], [place], xerr=bars, color=SERIES[number], marker=MARKERS[number], markersize=5,
                    elinewidth=1.6, capsize=3, linestyle="", label=judge if row == 0 else None,
                )  # fmt: skip
        axes.set_yticks(range(len(rungs)), [pair for pair, _ in rungs])
        axes.set_ylim(len(rungs) - 0.5, -0.5)
        axes.set_xlim(0, 101)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("wins, % of prompts (a tie is half)")
        figure.legend(loc="upper center", ncols=3, handletextpad=0.3, columnspacing=1.2, borderaxespad=0.1)
        return to_svg(figure, "ladder", title)


def in_words(share: Figure) -> str:
    return "unknown" if share.get("mean") is None else f"{100 * (share['mean'] or 0):.0f} %"


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """The mean of `width` values around each one, of fewer at the ends."""
    half = width // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def finite(points: Sequence[dict[str, Any]], x: str, y: str) -> tuple[list[float], list[float]]:
    """The values of two keys, of the records that have a finite number under both."""
    pairs = [
        (record[x], record[y])
        for record in points
        if all(isinstance(record.get(key), (int, float)) and math.isfinite(record[key]) for key in (x, y))
    ]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def canvas(size: tuple[float, float], left: float = 0.72, top: float = 0.1, legend_rows: int = 0) -> tuple[Any, Any]:
    """An empty figure and its axes, which have the same place in all figures of a size. Inches."""
    from matplotlib.figure import Figure as Canvas  # matplotlib takes half a second, which --help should not wait for

    width, height = size[0], size[1] + 0.22 * legend_rows
    figure = Canvas(figsize=(width, height))
    figure.subplots_adjust(left / width, (0.5 + 0.22 * legend_rows) / height, 1 - 0.1 / width, 1 - top / height)
    return figure, figure.subplots()


def settings() -> Any:
    """The context to draw in."""
    from matplotlib import rc_context

    return rc_context(SETTINGS)  # type: ignore[arg-type]


def to_svg(figure: Any, name: str, title: str) -> Markup:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return inline(file.getvalue(), name, title)


def inline(svg: str, name: str, title: str) -> Markup:
    """An SVG file as part of a page: without its header, with ids of its own, and in the page's colours."""

    def adapted(tag: re.Match[str]) -> str:
        text = re.sub(r'\bid="', f'id="{name}-', tag[0])
        text = re.sub(r'(xlink:)?href="#', f'href="#{name}-', text)
        text = text.replace("url(#", f"url(#{name}-").replace("'DejaVu Sans'", "inherit")
        for placeholder, paint in PAINT.items():
            text = text.replace(placeholder, paint)
        return re.sub(r"(\d\.\d\d)\d+", r"\1", text)  # hundredths of a point are finer than any screen

    svg = re.sub(
        r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL
    )
    svg = re.sub(r">\s+<", "><", re.sub(r"<[^>]+>", adapted, svg))  # what stands between the tags stays as it is
    view = re.search(r'viewBox="[^"]+"', svg)
    head = f'<svg role="img" aria-label="{escape(title, quote=True)}" {view[0] if view else ""}>'
    return Markup(head + svg[svg.index(">") + 1 :])
