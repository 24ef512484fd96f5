"""How much memory there is: as much as a test says."""

free_memory = float("inf")


def get_free_memory(device=None):
    return free_memory


def load_models_gpu(patchers):
    """Loading a model is when the host merges the networks of its patcher."""
    for patcher in patchers:
        patcher.load()


def load_model_gpu(patcher):
    load_models_gpu([patcher])
