"""Saving, which is remembered and not done."""

saved = []


def save_image(image, path, basename, seed=None, prompt=None, extension="png", info=None, short_filename=False, p=None, grid=False):
    saved.append({"image": image, "path": path, "basename": basename, "seed": seed, "prompt": prompt, "extension": extension, "info": info, "grid": grid})
