"""The extensions that are installed."""

extensions: list = []
