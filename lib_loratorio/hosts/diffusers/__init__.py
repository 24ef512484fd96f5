"""diffusers: composes LoRAs in pipelines of SD 1.x, SD 2.x, SDXL, SD 3 and FLUX.1."""

from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.diffusers.arguments import Lora
from lib_loratorio.hosts.diffusers.sampling import Composition, composed

__all__ = ["Composition", "Lora", "LoratorioError", "composed"]
