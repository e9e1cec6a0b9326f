"""Plain drawings: a few kinds of shapes, written as SVG or painted as PNG.

A shape has a role ("bad", "grid") and no colour: a page styles the roles with its own theme, a file on its
own gets `LIGHT`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

Point = tuple[float, float]

#: Colours of the roles on white paper.
LIGHT: dict[str, str] = {
    "ink": "#1c2126",
    "muted": "#59626c",
    "grid": "#e1e5ea",
    "axis": "#8a939d",
    "plain": "#7c9cc0",
    "caution": "#b98a2f",
    "bad": "#c2271d",
    "shade": "#f7d6d3",
    "state": "#8a5a00",
    "front": "#1f5fbf",
}
_FONT = 12


@dataclass(frozen=True, slots=True)
class Rect:
    x: float
    y: float
    width: float
    height: float
    role: str


@dataclass(frozen=True, slots=True)
class Line:
    points: Sequence[Point]
    role: str
    width: float = 1.0


@dataclass(frozen=True, slots=True)
class Polygon:
    points: Sequence[Point]
    role: str


@dataclass(frozen=True, slots=True)
class Text:
    """``anchor``: "start", "middle" or "end" of the text is at ``x``; ``y`` is its base line."""

    x: float
    y: float
    text: str
    role: str = "muted"
    anchor: str = "start"


Shape = Rect | Line | Polygon | Text


@dataclass(slots=True)
class Drawing:
    """Shapes from back to front. ``title`` and ``text`` say in words what is drawn."""

    width: int
    height: int
    title: str
    text: str
    shapes: list[Shape] = field(default_factory=list)


def to_svg(drawing: Drawing, alone: bool = True) -> str:
    """The drawing as SVG: ``alone`` with colours and paper, or to be styled by the page around it."""
    width, height = drawing.width, drawing.height
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{_attribute(drawing)}">'
    )
    parts = [head]
    if alone:
        parts += [f"<title>{escape(drawing.title)}</title>", f"<style>{_style()}</style>"]
        parts.append(f'<rect width="{width}" height="{height}" fill="#ffffff"/>')
    parts += [_element(shape) for shape in drawing.shapes]
    return "\n".join((*parts, "</svg>"))


def _attribute(drawing: Drawing) -> str:
    return escape(f"{drawing.title}. {drawing.text}")


def _style() -> str:
    rules = [f".d-{role}{{fill:{colour}}}.l-{role}{{stroke:{colour}}}" for role, colour in LIGHT.items()]
    return "".join(
        (f"text{{font:{_FONT}px sans-serif}}polyline{{fill:none}}rect{{shape-rendering:crispEdges}}", *rules)
    )


def _element(shape: Shape) -> str:
    match shape:
        case Rect(x, y, width, height, role):
            return (
                f'<rect x="{x:.5g}" y="{y:.5g}" width="{width:.4g}" height="{height:.4g}" class="d-{role}"/>'
            )
        case Line(points, role, width):
            return f'<polyline points="{_points(points)}" stroke-width="{width:g}" class="l-{role}"/>'
        case Polygon(points, role):
            return f'<polygon points="{_points(points)}" class="d-{role}"/>'
        case Text(x, y, text, role, anchor):
            return (
                f'<text x="{x:.5g}" y="{y:.5g}" text-anchor="{anchor}" class="d-{role}">{escape(text)}</text>'
            )


def _points(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.5g},{y:.5g}" for x, y in points)


def write_png(drawing: Drawing, path: str | Path, scale: int = 2) -> None:
    """Paint the drawing to a PNG file, ``scale`` pixels a unit.

    Raises:
        ImportError: Pillow is missing; says how to get it.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ImportError(
            "PNG plots need Pillow: pip install 'causaltrace[plots]'. SVG plots need nothing."
        ) from error
    image = Image.new("RGB", (drawing.width * scale, drawing.height * scale), "#ffffff")
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(_FONT * scale)
    for shape in drawing.shapes:
        _paint(pen, shape, scale, font)
    image.save(path, format="PNG")


def _paint(pen: Any, shape: Shape, scale: int, font: Any) -> None:
    colour = LIGHT[shape.role]
    match shape:
        case Rect(x, y, width, height):
            left, top = x * scale, y * scale
            right, bottom = left + max(width * scale, 1) - 1, top + max(height * scale, 1) - 1
            pen.rectangle((left, top, right, bottom), fill=colour)
        case Line(points, _, width):
            pen.line([(x * scale, y * scale) for x, y in points], fill=colour, width=round(width * scale))
        case Polygon(points):
            pen.polygon([(x * scale, y * scale) for x, y in points], fill=colour)
        case Text(x, y, text, _, anchor):
            at = {"start": "ls", "middle": "ms", "end": "rs"}[anchor]
            pen.text((x * scale, y * scale), text, fill=colour, font=font, anchor=at)
