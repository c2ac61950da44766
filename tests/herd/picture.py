"""Draw a run as SVG: what reaches the server and what is delivered, over time. It suits light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tests.herd.server import Figures
from tests.herd.setting import Setting

__all__ = ["draw"]

_WIDTH, _HEIGHT = 330, 150
_LEFT, _TOP, _GAP_X, _GAP_Y, _BOTTOM = 52, 44, 62, 48, 66
_BEFORE, _AFTER = 20, 120
_LABELS = (0.1, 1.0, 10.0)
_LOWEST, _HIGHEST = 0.03, 30.0

_HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
  <title>{title}</title>
  <style>
    svg {{ color: #57606a; --line-0: #0969da; --line-1: #1a7f37; --line-2: #bc4c00; --line-3: #8250df }}
    .page {{ fill: #fff }}
    .grid {{ fill: none; stroke: currentColor; stroke-width: .5; opacity: .4 }}
    .curve {{ fill: none; stroke-width: 1.5; stroke-linejoin: round }}
    .curve.first {{ stroke-width: 2.5 }}
    text {{ font: 12px system-ui, sans-serif; fill: #1f2328 }}
    .axis {{ font-size: 11px; fill: currentColor }}
    .middle {{ text-anchor: middle }}
    .end {{ text-anchor: end }}
    @media (prefers-color-scheme: dark) {{
      svg {{ color: #9198a1; --line-0: #4493f8; --line-1: #3fb950; --line-2: #f0883e; --line-3: #ab7df8 }}
      .page {{ fill: #131416 }}
      text {{ fill: #e6edf3 }}
    }}
  </style>
  <rect class="page" width="{width}" height="{height}" rx="8"/>
"""


def draw(runs: Mapping[tuple[float, str], tuple[Setting, Figures]]) -> str:
    """Return a picture with a column for each capacity, and a line for each policy."""
    capacities = list(dict.fromkeys(capacity for capacity, _ in runs))
    policies = list(dict.fromkeys(policy for _, policy in runs))
    width = _LEFT + len(capacities) * (_WIDTH + _GAP_X) - _GAP_X + 32
    height = _TOP + 2 * _HEIGHT + _GAP_Y + _BOTTOM
    title = "Requests and delivered spans after an outage, by policy"
    parts = [_HEAD.format(width=width, height=height, title=title)]
    for column, capacity in enumerate(capacities):
        x = _LEFT + column * (_WIDTH + _GAP_X)
        for row, name in enumerate(("requests", "delivered spans")):
            y = _TOP + row * (_HEIGHT + _GAP_Y)
            heading = f"{name} (1&#215; is usual), {capacity:g} times the capacity"
            parts.append(f'  <text x="{x}" y="{y - 10}">{heading}</text>\n')
            parts.append(_axes(x, y))
            for number, policy in enumerate(policies):
                setting, figures = runs[capacity, policy]
                usual = setting.clients * setting.locations * setting.rate if row else setting.usual_requests
                counts = figures.delivered if row else figures.offered
                parts.append(_curve(x, y, number, [count / usual for count in _shown(counts, setting)]))
    parts.append(_legend(policies, height - 14))
    return "".join(parts) + "</svg>\n"


def _shown(counts: list[int], setting: Setting) -> list[int]:
    end = int(setting.up_at)
    return counts[end - _BEFORE : end + min(_AFTER, int(setting.after))]


def _height_of(y: int, value: float) -> float:
    inside = min(max(value, _LOWEST), _HIGHEST)
    return y + _HEIGHT * (1 - math.log(inside / _LOWEST) / math.log(_HIGHEST / _LOWEST))


def _axes(x: int, y: int) -> str:
    parts = []
    for value in _LABELS:
        at = _height_of(y, value)
        parts.append(f'  <path class="grid" d="M{x} {at:.1f}h{_WIDTH}"/>\n')
        parts.append(f'  <text class="axis end" x="{x - 6}" y="{at + 4:.1f}">{value:g}&#215;</text>\n')
    for second in range(0, _AFTER + 1, 30):
        at = x + _WIDTH * (second + _BEFORE) / (_BEFORE + _AFTER)
        parts.append(f'  <path class="grid" d="M{at:.1f} {y}v{_HEIGHT}"/>\n')
        parts.append(f'  <text class="axis middle" x="{at:.1f}" y="{y + _HEIGHT + 15}">{second} s</text>\n')
    return "".join(parts)


def _curve(x: int, y: int, number: int, values: list[float]) -> str:
    step = _WIDTH / (_BEFORE + _AFTER)
    points = " ".join(f"{x + step * (at + 0.5):.1f} {_height_of(y, value):.1f}" for at, value in enumerate(values))
    kind = "curve first" if number == 0 else "curve"
    return f'  <path class="{kind}" style="stroke: var(--line-{number})" d="M{points}"/>\n'


def _legend(policies: list[str], y: int) -> str:
    parts, x = [], _LEFT
    for number, policy in enumerate(policies):
        parts.append(f'  <path class="curve" style="stroke: var(--line-{number})" d="M{x} {y - 4}h18"/>\n')
        parts.append(f'  <text x="{x + 24}" y="{y}">{policy}</text>\n')
        x += 44 + 7 * len(policy)
    return "".join(parts)
