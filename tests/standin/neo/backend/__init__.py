"""What of Neo's backend differs from Forge's, in whose place it is imported; the rest is Forge's."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
