"""AUTOMATIC1111's WebUI 1.10.

The bracket of a composition is the sampler's `launch_sampling`, which every sampler goes through once a
pass: what is changed is put back in its `finally`, also after an interruption. Within it, each sampler
call is: `on_cfg_denoiser` takes the networks out and puts the base's text conditions in; the model's
`forward` evaluates the rows the host asks for, of the base and of every adapter; `on_cfg_denoised` writes
the composed predictions where the guidance reads them, and puts the networks back.

The host merges networks lazily, in each layer's forward: with its list of loaded networks empty, a
forward restores the base's weights first. That is why the list is emptied, and only during the call.
"""

from lib_loratorio.hosts.a1111.sampling import on_cfg_denoised, on_cfg_denoiser, prepare
from lib_loratorio.hosts.webui.distributed import collect as batch_done
from lib_loratorio.hosts.webui.distributed import listen
from lib_loratorio.hosts.webui.messages import note, stop
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
