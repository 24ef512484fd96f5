"""The tiny world, the tiny model trained on it, its LoRAs and the detector. Nothing here is imported by the "
"extension."""
