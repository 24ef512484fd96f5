"""The Forge family: Forge, reForge and Neo.

These hosts merge LoRAs into the weights when a model is loaded for a sampling. Here the sampling starts from a clone of
the host's patcher without the networks' patches, so the model is the base; a `model_function_wrapper` evaluates the
rows the host asks for, of the base and of every adapter; and the function that evaluates conditional and unconditional
rows is bracketed, so that the composed predictions are what every later guidance function sees, in whatever order and
portions the host asks for rows.

What differs among the family's members lies in `main`, `reforge` and `neo`.
"""

from lib_loratorio.hosts.forge.sampling import on_cfg_denoised, on_cfg_denoiser, prepare, stop
from lib_loratorio.hosts.webui.distributed import collect as batch_done
from lib_loratorio.hosts.webui.distributed import listen
from lib_loratorio.hosts.webui.messages import note
from lib_loratorio.hosts.webui.request import finish, image_done, leave_alone, start

__all__ = [
    "batch_done",
    "finish",
    "image_done",
    "leave_alone",
    "listen",
    "note",
    "on_cfg_denoised",
    "on_cfg_denoiser",
    "prepare",
    "start",
    "stop",
]
