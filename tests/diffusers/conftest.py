"""What tests of several files begin with."""

import pytest


@pytest.fixture(scope="session")
def loras(tmp_path_factory):
    """For tiny SD 1.x three LoRAs with their strengths: with text encoders, with other layers too, and with text
    encoders again.
    """
    import pipelines  # here, as some environments have no diffusers
    import tiny_pipelines

    return pipelines.write_loras(tiny_pipelines.sd(), tmp_path_factory.mktemp("loras"))
