"""The tiny world, the tiny model trained on it, its LoRAs and the detector. The extension imports none of it."""

import os

# transformers and diffusers warn while they are imported, here of image processors that nothing in the lab uses. They
# read these once, so that they are set before any of the lab's modules imports them; whoever wants to see it all sets
# them otherwise.
for _library in ("TRANSFORMERS", "DIFFUSERS"):
    os.environ.setdefault(f"{_library}_VERBOSITY", "error")
