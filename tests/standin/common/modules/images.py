"""Saving, which is remembered and not done."""

from PIL import ImageFont

saved = []


def get_font(size):
    return ImageFont.load_default(size)


def save_image(
    image, path, basename, seed=None, prompt=None, extension="png", info=None, short_filename=False, p=None, grid=False
):
    saved.append(
        {
            "image": image,
            "path": path,
            "basename": basename,
            "seed": seed,
            "prompt": prompt,
            "extension": extension,
            "info": info,
            "grid": grid,
        }
    )
