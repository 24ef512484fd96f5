"""What the Forge family's models are called with besides the latents, each kind with its own way into a batch."""

import math

import torch


class Condition:
    def __init__(self, cond):
        self.cond = cond

    def process_cond(self, batch_size, device, **kwargs):
        repeats = -(-batch_size // len(self.cond))
        return type(self)(self.cond.repeat(repeats, *[1] * (self.cond.dim() - 1))[:batch_size].to(device))

    def can_concat(self, other):
        return self.cond.shape == other.cond.shape

    def concat(self, others):
        return torch.cat([self.cond, *(other.cond for other in others)])

    def size(self):
        return list(self.cond.shape)


class ConditionCrossAttn(Condition):
    """Text, repeated to a common length where that is not too long."""

    def can_concat(self, other):
        (rows, tokens, width), (other_rows, other_tokens, other_width) = self.cond.shape, other.cond.shape
        return (rows, width) == (other_rows, other_width) and math.lcm(tokens, other_tokens) <= 4 * min(
            tokens, other_tokens
        )

    def concat(self, others):
        texts = [self.cond, *(other.cond for other in others)]
        tokens = math.lcm(*(text.shape[1] for text in texts))
        return torch.cat([text.repeat(1, tokens // text.shape[1], 1) for text in texts])


def compiled(cond):
    """A WebUI's condition as the model's."""
    if isinstance(cond, torch.Tensor):
        return [{"cross_attn": cond, "model_conds": {"c_crossattn": ConditionCrossAttn(cond)}}]
    text, pooled = cond["crossattn"], cond["vector"]
    return [
        {
            "cross_attn": text,
            "pooled_output": pooled,
            "model_conds": {"c_crossattn": ConditionCrossAttn(text), "y": Condition(pooled)},
        }
    ]


def compiled_with_weights(cond, weights):
    """One condition for each place in the prompts, of all pictures; a place's strength is the last picture's."""
    found = []
    for of_place in zip(*weights):
        rows = [row for row, _ in of_place]
        (condition,) = compiled(cond.advanced_indexing(rows) if hasattr(cond, "advanced_indexing") else cond[rows])
        found.append({**condition, "strength": of_place[-1][1]})
    return found
