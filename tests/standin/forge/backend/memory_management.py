"""How much memory there is: as much as a test says."""

free_memory = float("inf")


def get_free_memory(device=None):
    return free_memory


def load_model_gpu(patcher):
    """Loading a model is when the host merges the networks of its patcher."""
    patcher.refresh_loras()
