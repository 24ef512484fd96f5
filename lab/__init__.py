"""The tiny world, the tiny model trained on it, its LoRAs and the detector. The extension imports none of it."""
