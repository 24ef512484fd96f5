"""The demo as one HTML page that needs nothing else: pictures are in it, and no network is asked."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from string import Template

import torch
from PIL import Image

from lab import world
from lab.contact_sheet import OF_LORAS, winners
from lab.demo_pictures import Picture
from lab.demo_plan import Section, Shot
from lab.demo_sheet import map_of
from lab.demo_words import legend, told
from lib_loratorio.palette import hexadecimal

TEMPLATE = Path(__file__).with_suffix(".html")


def page(
    intro: Sequence[str],
    sections: Sequence[Section],
    pictures: Mapping[Shot, Picture],
    table: Sequence[Sequence[str]],
) -> str:
    """The whole page; `table` has its header first. All texts are escaped here."""
    parts = [_section(section, pictures) for section in sections]
    filmed = next(shot for section in sections for shot in section.shots if shot.filmed)
    parts += [_film(filmed, pictures[filmed]), _table(table)]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        intro="\n".join(f"<p>{escape(line)}</p>" for line in intro), sections="\n".join(parts)
    )


def _section(section: Section, pictures: Mapping[Shot, Picture]) -> str:
    figures = []
    if section.asked:
        wanted = f"A drawing of: {section.asked[0].caption}"
        figures.append(_figure(Image.fromarray(world.render(*section.asked)), wanted, "what the caption asks for"))
    for shot in section.shots:
        picture = pictures[shot]
        found = ", ".join(picture.found) or "no skill"
        alt = f"{shot.title}: {shot.shown.caption}; the detector sees {found}"
        figures.append(_figure(Image.fromarray(picture.image), alt, shot.title, _lines(told(shot, picture))))
    if section.mapped:
        picture = pictures[next(shot for shot in section.shots if shot.title == section.mapped)]
        alt = f"Which LoRA weighs most where: {', '.join(text for text, _ in legend(picture))}"
        figures.append(_figure(map_of(picture), alt, f"{section.mapped}: who wins", _legend(picture)))
    row = "\n".join(figures)
    title, text = escape(section.title), escape(section.text)
    return f'<section>\n<h2>{title}</h2>\n<p>{text}</p>\n<div class="row">\n{row}\n</div>\n</section>'


def _film(shot: Shot, picture: Picture) -> str:
    """The steps of one picture: a list of stills, of which the page's script makes an animation."""
    count = len(picture.steps)
    stills = "\n".join(_still(picture, number, count) for number in range(count))
    return f"""<section id="film">
<h2>One picture, step by step</h2>
<p>{escape(f"{shot.title}: {shot.shown.caption}.")} Left, what the model takes the picture for in each step (denoised);
right, over it, the LoRA that weighs most in each place. The bar has each LoRA's share of the step.</p>
<p>{_legend(picture, shares=False)}</p>
<div class="controls"><button type="button">Play</button>
<input type="range" min="1" max="{count}" value="{count}" aria-label="Step of the sampling"></div>
<ol class="steps">
{stills}
</ol>
</section>"""


def _still(picture: Picture, number: int, count: int) -> str:
    image, weights = Image.fromarray(picture.steps[number]), torch.from_numpy(picture.weights_of_steps[number])
    shares = weights.mean((1, 2)).tolist()
    words = ", ".join(f"{label} {share:.0%}" for label, share in zip(picture.labels, shares))
    bar = "".join(
        f'<span style="width:{100 * share:.1f}%;background:{hexadecimal(OF_LORAS[n])}"></span>'
        for n, share in enumerate(shares)
    )
    step = f"step {number + 1} of {count}"
    seen, won = escape(f"The picture as of {step}"), escape(f"Who weighs most in {step}: {words}")
    return (
        f'<li><div class="pair"><img src="{_data(image)}" alt="{seen}" width="128" height="128">'
        f'<img src="{_data(winners(image, weights))}" alt="{won}" width="128" height="128"></div>'
        f'<div class="shares" aria-hidden="true">{bar}</div>'
        f"<b>{step[0].upper() + step[1:]}</b> <span>{escape(words)}</span></li>"
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    header, *body = ([escape(cell) for cell in row] for row in rows)
    lines = ["<tr>" + "".join(f'<th scope="col">{cell}</th>' for cell in header) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body]
    inside = "\n".join(lines)
    return (
        "<section>\n<h2>The ways side by side</h2>\n<p>The pictures of several LoRAs above, together. So few are no "
        "measurement: docs/evaluation.md has one.</p>\n"
        f'<div class="scroll"><table>\n{inside}\n</table></div>\n</section>'
    )


def _figure(image: Image.Image, alt: str, title: str, caption: str = "") -> str:
    return (
        f'<figure><img src="{_data(image)}" alt="{escape(alt)}" width="{image.width}" height="{image.height}">'
        f"<figcaption><b>{escape(title)}</b>{caption}</figcaption></figure>"
    )


def _lines(lines: Sequence[str]) -> str:
    """Lines one below the other, which do not break before their last word: a unit."""
    kept = ("&nbsp;".join(escape(line).rsplit(" ", 1)) for line in lines)
    return "<br>".join(f'<span class="quiet">{line}</span>' for line in kept)


def _legend(picture: Picture, shares: bool = True) -> str:
    entries = legend(picture) if shares else [(label, OF_LORAS[n]) for n, label in enumerate(picture.labels)]
    return "".join(
        f'<span class="key"><i style="background:{hexadecimal(colour)}"></i>{escape(text)}</span>'
        for text, colour in entries
    )


def _data(image: Image.Image) -> str:
    """A picture as an address that holds it."""
    file = BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"
