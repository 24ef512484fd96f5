"""LoRAtorio (arXiv 2508.11624) for Stable Diffusion WebUIs: composes LoRAs without merging their weights."""

__version__ = "1.0.0rc1"
