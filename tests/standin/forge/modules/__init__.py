"""What this folder lacks is as in the stand-in of AUTOMATIC1111."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
