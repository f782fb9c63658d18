"""Draws the site's figures: `python docs/assets/draw.py`. Colours are readable on light and on dark pages."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

HERE = Path(__file__).parent
OLD, NEW, LINE, SOFT = "#4051b5", "#ffb454", "#868c96", "#808690"
STYLE = """<style>
text { font: 14px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; text-anchor: middle }
.sans { font-family: system-ui, "Segoe UI", "DejaVu Sans", sans-serif }
.left { text-anchor: start }
</style>"""
SENTENCE = ["the", "cat", "sat", "on", "the", "mat"]

Row = tuple[str, list[tuple[str, str]]]
"""What stands left of a row, and its tokens, each ``old``, ``new`` or ``hidden``."""


def growing(orders: list[int], label: str) -> list[Row]:
    """Tokens are added: by each call the one of this place in the sentence."""
    rows: list[Row] = []
    for call, new in enumerate(orders, start=1):
        there = sorted(orders[:call])
        rows.append((label.format(call), [(SENTENCE[i], "new" if i == new else "old") for i in there]))
    return rows


def unmasking(steps: list[list[int]], labels: list[str]) -> list[Row]:
    """Hidden tokens are revealed: in each step those of these places."""
    rows: list[Row] = []
    seen: set[int] = set()
    for label, new in zip(labels, steps, strict=True):
        kinds = ["new" if i in new else "old" if i in seen else "hidden" for i in range(len(SENTENCE))]
        rows.append((label, list(zip(SENTENCE, kinds, strict=True))))
        seen |= set(new)
    return rows


def token(x: float, y: float, width: float, text: str, kind: str) -> str:
    """A box with a token."""
    fill, stroke, ink = {
        "old": (OLD, OLD, "#ffffff"),
        "new": (NEW, NEW, "#22242a"),
        "hidden": ("none", LINE, SOFT),
    }[kind]
    shown = "·" if kind == "hidden" else text
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="22" rx="4" fill="{fill}" stroke="{stroke}"/>'
        f'<text x="{x + width / 2}" y="{y + 16}" fill="{ink}">{escape(shown)}</text>'
    )


def panel(title: str, how: str, rows: list[Row]) -> str:
    """How one family writes the sentence."""
    width = 312
    parts = [
        f'<text class="sans left" x="0" y="18" fill="{SOFT}"><tspan font-weight="bold">{title}</tspan>  {how}</text>'
    ]
    for i, (label, tokens) in enumerate(rows):
        x, y = 54.0, 30 + 28 * i
        parts.append(f'<text class="sans left" x="0" y="{y + 16}" fill="{SOFT}">{escape(label)}</text>')
        for text, kind in tokens:
            w = 9 * len(text) + 12
            parts.append(token(x, y, w, text, kind))
            x += w + 5
    return svg(width, 30 + 28 * len(rows), title, parts)


def svg(width: int, height: int, title: str, parts: list[str]) -> str:
    """A picture of its own, without a background."""
    body = "\n".join(parts)
    frame = f'xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f"<svg {frame}>\n<title>{escape(title)}</title>\n{STYLE}\n{body}\n</svg>\n"


def box(x: int, y: int, width: int, name: str, says: str, *, family: bool) -> str:
    """A part with its name and what it does."""
    fill, ink, soft = (OLD, "#ffffff", "#e3e6fa") if family else ("none", SOFT, SOFT)
    centre = x + width / 2
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="46" rx="6" fill="{fill}" stroke="{OLD if family else LINE}"/>'
        f'<text class="sans" x="{centre}" y="{y + 20}" fill="{ink}" font-weight="bold">{escape(name)}</text>'
        f'<text class="sans" x="{centre}" y="{y + 38}" fill="{soft}" style="font-size:12px">{escape(says)}</text>'
    )


def arrow(points: list[tuple[int, int]], says: str = "", at: tuple[int, int] = (0, 0)) -> str:
    """A line through these points with a head, and what travels along it."""
    line = " ".join(f"{x},{y}" for x, y in points)
    drawn = f'<polyline points="{line}" fill="none" stroke="{LINE}" stroke-width="1.5" marker-end="url(#head)"/>'
    if says:
        where = f'x="{at[0]}" y="{at[1]}" fill="{SOFT}" style="font-size:12px"'
        drawn += f'<text class="sans left" {where}>{escape(says)}</text>'
    return drawn


def parts_of_a_run() -> str:
    """What is whose in a run, and what travels between."""
    head = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="{LINE}"/></marker></defs>'
    )
    return svg(
        420,
        470,
        "Parts of a run",
        [
            head,
            box(110, 2, 200, "task", "rows of text, a check of answers", family=False),
            arrow([(210, 48), (210, 78)]),
            box(110, 80, 200, "dataset manager", "tokens, cache, order, keys", family=False),
            arrow([(210, 126), (210, 166)], "examples of a role", (218, 150)),
            box(110, 168, 200, "Collator", "layout and noise", family=True),
            arrow([(170, 214), (170, 236), (85, 236), (85, 260)], "batch", (98, 230)),
            arrow([(250, 214), (250, 236), (335, 236), (335, 260)], "prompts", (268, 230)),
            box(5, 262, 160, "LossFunction", "one formula", family=True),
            box(255, 262, 160, "Predictor", "samples, measures", family=True),
            box(150, 326, 120, "Model", "a network", family=True),
            arrow([(165, 285), (185, 285), (185, 324)]),
            arrow([(255, 285), (235, 285), (235, 324)]),
            arrow([(85, 308), (85, 412)], "nats, tokens", (92, 398)),
            arrow([(335, 308), (335, 412)], "texts, nats", (342, 398)),
            box(5, 414, 180, "harness", "gradient, steps, checkpoints", family=False),
            box(235, 414, 180, "evaluation", "metrics with errors, results", family=False),
        ],
    )


def pictures() -> dict[str, str]:
    """Every picture by its name."""
    certain = unmasking([[], [3], [0, 4], [2], [1], [5]], ["start", *(f"call {i}" for i in range(1, 6))])
    timed = unmasking([[], [4], [1, 5], [2], [0], [3]], ["t = 1", ".8", ".6", ".4", ".2", "t = 0"])
    return {
        "arlm": panel("ARLM", "appends, left to right", growing([0, 1, 2, 3, 4, 5], "call {}")),
        "mlm": panel("MLM", "fills in what it is most certain of", certain),
        "ilm": panel("ILM", "inserts anywhere, then stops", growing([1, 2, 5, 0, 3, 4], "call {}")),
        "mdlm": panel("MDLM", "undoes masking as time runs back", timed),
        "parts": parts_of_a_run(),
    }


if __name__ == "__main__":
    for name, text in pictures().items():
        (HERE / f"{name}.svg").write_text(text)
