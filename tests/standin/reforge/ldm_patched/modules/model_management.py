"""How much memory there is: as much as a test says."""

free_memory = float("inf")


def get_free_memory(dev=None):
    return free_memory


def load_models_gpu(models, memory_required=0):
    """Loading a model is when the host merges the networks of its patcher."""
    for patcher in set(models):
        patcher.load()


def load_model_gpu(model):
    load_models_gpu([model])
