"""Compiled denoisers, which know nothing of later hooks, used as they are written for a while."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from lib_loratorio.errors import told
from lib_loratorio.hosts.diffusers.denoisers import denoiser_name

COMPILED = "_compiled_call_impl"
"""Where a module that was compiled in its place has the compiled call, as torch and diffusers do it by region."""


def plain_denoiser(pipe: Any) -> nn.Module:
    """The pipeline's denoiser, as it is without compilation. Raises LoratorioError where there is none."""
    model = getattr(pipe, denoiser_name(pipe))
    return getattr(model, "_orig_mod", model)


@contextmanager
def uncompiled(pipe: Any) -> Iterator[None]:
    """For the time of the block the pipeline has its denoiser as it is without compilation."""
    name = denoiser_name(pipe)
    compiled, plain = getattr(pipe, name), plain_denoiser(pipe)
    in_place = [module for module in plain.modules() if getattr(module, COMPILED, None) is not None]
    calls = [getattr(module, COMPILED) for module in in_place]
    if in_place or compiled is not plain:
        logging.warning(told("the compiled denoiser is used uncompiled within the block."))
    try:
        if compiled is not plain:
            pipe.__dict__[name] = plain  # not by the pipeline's own way of setting a part, which notes its class
        for module in in_place:
            setattr(module, COMPILED, None)
        yield
    finally:
        if compiled is not plain:
            pipe.__dict__[name] = compiled
        for module, call in zip(in_place, calls):
            setattr(module, COMPILED, call)
