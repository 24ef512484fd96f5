"""diffusers: composes the LoRAs of StableDiffusionPipeline and StableDiffusionXLPipeline."""

from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.diffusers.arguments import Lora
from lib_loratorio.hosts.diffusers.sampling import Composition, composed

__all__ = ["Composition", "Lora", "LoratorioError", "composed"]
