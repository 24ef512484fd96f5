"""The method's equations in loops, for every host: one row, one model and one patch at a time.

It knows nothing of the extension. What a host does in its own way it asks the host for: to encode a text, and to
evaluate one row with given networks merged, one set at a time.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from equations import patch_weights, window_mask
from internals import Settings

BASE, MERGED = -1, -2


class Row(NamedTuple):
    """One row for a model: of a picture's latents `x [1,C,H,W]`, with a text.

    config: the sampler's, which has its own form of model. image: image conditions. unconditional: whether the text is
    the negative prompt. before: what other extensions do to a request before the extension. options: what the model is
    told besides.
    """

    x: torch.Tensor
    sigma: torch.Tensor
    text: Any
    number: int
    config: Any
    image: torch.Tensor
    unconditional: bool = False
    before: tuple = ()
    options: Mapping = MappingProxyType({})


class Equations:
    """One request.

    Args:
        adapters: `(name, text encoder's strength, UNet's)`, and the rank where it is not the file's own.
        prompts: per picture a list of `(text, or text of a call, weight)`.
        skipped: whether the host leaves guidance out in a call.
        everywhere: the global adapters.
        words: the adapters' trigger words.
        before: other extensions that run first.
        boxes: of each adapter in its place the box that it may be in, None for everywhere. gated: the numbers of those
            that are global there, and do not compete. window: the part of the picture that is sampled.
        ramps: of each adapter in its place a function of the fraction of the sampling, which its strength in the UNet
            is multiplied by, None for 1. of_everywhere: the same of the global adapters.
    """

    def __init__(
        self,
        host,
        adapters,
        prompts,
        negative="",
        *,
        cfg=3.0,
        steps=3,
        sampler="Euler",
        seed=1,
        x=None,
        size=(48, 40),
        settings=None,
        windows=None,
        skipped=lambda call: False,
        refiner=None,
        switch_at=2.0,
        everywhere=(),
        words=(),
        before=(),
        boxes=None,
        gated=(),
        window=(0, 0, 1, 1),
        ramps=None,
        of_everywhere=None,
    ):
        self.host, self.adapters, self.prompts, self.negative = host, adapters, prompts, negative
        self.settings, self.cfg, self.steps, self.size = Settings(**(settings or {})), cfg, steps, size
        self.windows, self.skipped, self.before = windows or [(0, 1)] * len(adapters), skipped, tuple(before)
        self.everywhere, self.words, self.kept = list(everywhere), words, {}
        self.boxes, self.gated, self.window = boxes, gated, window
        self.ramps, self.of_everywhere = ramps, of_everywhere
        self.checkpoint, self.refiner, self.switch_at = host.shared.sd_model, refiner, switch_at
        self.config = host.sd_samplers.find_sampler_config(sampler)
        self.total, self.call, self.encoded = self.config.total_steps(steps), 0, {}
        self.remainders, self.refreshed = {}, None  # by picture and place; when, and of whom
        plain = host.request("", height=size[1], width=size[0], seed=seed)
        self.x = torch.stack([plain.noise(number) for number in range(len(prompts))]) if x is None else x
        self.image = plain.image_conditioning(self.x)

    def latents(self):
        with self.host.put_back(), torch.no_grad():
            return self.config.function(self.denoiser, self.x, self.config.schedule(self.steps), {})

    def denoiser(self, x, sigma, **_):
        self.fraction = self.call / self.total
        self.step = self.call * self.steps // self.total
        self.is_between = self.falls_between()
        if self.refiner is not None and self.fraction >= self.switch_at:
            self.host.shared.sd_model = self.refiner
        guided = [self.picture(number, x[number : number + 1], sigma[number : number + 1]) for number in range(len(x))]
        self.call += 1
        return torch.cat(guided)

    # One picture in one step

    def picture(self, number, x, sigma):
        composed = [self.condition_of(number, x, sigma, place) for place in range(len(self.prompts[number]))]
        conditional, omegas = zip(*composed)
        if self.skipped(self.call) or (self.cfg == 1 and self.host.leaves_guidance_out_at_1):
            return self.host.unguided(conditional, self.weights(number))
        return self.guided(number, x, sigma, self.blended(number, conditional), omegas)

    def condition_of(self, number, x, sigma, place):
        """A sub-prompt's prediction and its patch weights."""
        if not self.saves_adapters():
            rows = self.rows(number, x, sigma, place)
            omega = self.omega(x, rows)
            return self.composed(rows, omega), omega
        if self.is_between:
            return self.between(number, x, sigma, place), self.remainders[number, place][1]
        unit = 1 if self.host.predicts_noise(self.config) else sigma
        merged = self.merged(number, x, sigma, place)
        rows = self.rows(number, x, sigma, place)
        omega = self.omega(x, rows)
        composed = self.composed(rows, omega)
        self.remainders[number, place] = (composed - merged) / unit, omega
        self.refreshed = self.step, tuple(self.present())
        return composed, omega

    def aside(self, number, x, sigma, place, omega, **row):
        """A sub-prompt's prediction on other latents, or of a model that is told something, with the step's weights."""
        if self.is_between:
            return self.between(number, x, sigma, place, **row)
        return self.composed(self.rows(number, x, sigma, place, **row), omega)

    def between(self, number, x, sigma, place, **row):
        unit = 1 if self.host.predicts_noise(self.config) else sigma
        return self.merged(number, x, sigma, place, **row) + self.remainders[number, place][0] * unit

    def merged(self, number, x, sigma, place, **row):
        text, image = self.text(MERGED, number, place), self.image[number : number + 1]
        asked = Row(x, sigma, text, number, self.config, image, before=self.before, **row)
        return self.host.predict(self.networks_together(), asked)

    def saves_adapters(self):
        count, method = len(self.present()), self.settings.method
        several = method != "switch" and (count > 1 or (count == 1 and method == "loratorio"))
        return bool(self.is_composed() and self.settings.refresh_every > 1 and several)

    def falls_between(self):
        """Whether this step goes on from an earlier one."""
        if not self.refreshed or not self.saves_adapters() or self.refreshed[1] != tuple(self.present()):
            return False
        return 0 < self.step - self.refreshed[0] < self.settings.refresh_every

    def networks_together(self):
        everywhere = self.ramped(self.everywhere, self.of_everywhere)
        adapters = self.ramped(self.adapters, self.ramps)
        return everywhere + [adapters[number] for number in sorted({*self.present(), *self.gated})]

    def guided(self, number, x, sigma, cond, omegas):
        uncond = self.unconditional(number, x, sigma, omegas)
        return uncond + (cond - uncond) * self.cfg * self.strength(number)

    def unconditional(self, number, x, sigma, omegas, keeping=True, **row):
        rows = self.rows(number, x, sigma, None, **{"unconditional": True, **row})
        unit = 1 if self.host.predicts_noise(self.config) else sigma
        if self.is_between or self.step % self.settings.guidance_every:
            return self.bare + self.kept[number] * unit
        recentred = self.recentred(rows, omegas)
        if keeping and (self.settings.guidance_every > 1 or self.saves_adapters()):
            self.kept[number] = (recentred - self.bare) / unit
        return recentred

    def weights(self, number):
        return [weight for _, weight in self.prompts[number]]

    def strength(self, number):
        return sum(self.weights(number))

    def blended(self, number, predictions):
        weights = self.weights(number)
        return sum(weight * e for weight, e in zip(weights, predictions)) / sum(weights)

    # The method

    def is_composed(self):
        s = self.settings
        in_range = s.start <= self.fraction and (self.fraction < s.end or s.end == 1)
        return in_range and self.host.shared.sd_model is self.checkpoint

    def present(self):
        return [
            adapter
            for adapter, (start, end) in enumerate(self.windows)
            if start <= self.fraction and (self.fraction < end or end == 1) and adapter not in self.gated
        ]

    def mask(self, adapter, x):
        """How much of each latent pixel an adapter may be in, `[H,W]`."""
        box = self.boxes and self.boxes[adapter]
        if not box:
            return torch.ones(x.shape[2:], dtype=torch.float64)
        return window_mask(box, tuple(x.shape[2:]), self.window, self.settings.feather)

    def omega(self, x, rows):
        """`[N,H,W]`, of the adapters present; None where none are composed."""
        s, present = self.settings, self.present()
        if not self.is_composed() or not present:
            return None
        masks = torch.stack([self.mask(adapter, x) for adapter in present])
        if s.method == "composite":
            total = masks.sum(0)
            return masks / total.where(total > 0, 1.0) * total.clamp(max=1)
        if s.method == "switch":
            turn = self.step // 5 % len(present)
            return torch.eye(len(present), dtype=x.dtype)[turn][:, None, None] * masks
        predictions = [rows[model][0] for model in (BASE, *present)]
        noise = predictions if self.host.predicts_noise(self.config) else [x[0] - e for e in predictions]
        return patch_weights(noise[0], noise[1:], s.patch_size, s.temperature, s.top_k, masks)

    def composed(self, rows, omega):
        if omega is None:
            (prediction,) = rows.values()
            return prediction
        of_adapters = sum(omega[place] * rows[adapter] for place, adapter in enumerate(self.present()))
        return of_adapters + (1 - omega.sum(0)) * rows[BASE] if self.boxes else of_adapters

    def recentred(self, rows, omegas):
        if omegas[0] is None:
            return self.composed(rows, None)
        lam = self.settings.lam if self.settings.method == "loratorio" else 0
        return lam * rows[BASE] + (1 - lam) * self.composed(rows, sum(omegas) / len(omegas))

    # The rows of every model

    def rows(self, number, x, sigma, place, **row):
        """By model its prediction for a sub-prompt, or, where `place` is None, for the negative prompt."""
        models = [BASE, *self.present(), *self.gated] if self.is_composed() else [MERGED]
        image = self.image[number : number + 1]
        predictions = {
            model: self.host.predict(
                self.networks_in_step(model),
                Row(x, sigma, self.text(model, number, place), number, self.config, image, before=self.before, **row),
            )
            for model in models
        }
        if not self.is_composed():
            return predictions
        self.bare = predictions[BASE]  # without what is global in a region
        alone = {model: predictions.pop(model) for model in self.gated}
        added = sum(self.mask(model, x) * (e - predictions[BASE]) for model, e in alone.items())
        return {model: prediction + added for model, prediction in predictions.items()}

    def networks_of(self, model):
        return self.everywhere + ({BASE: [], MERGED: self.adapters}[model] if model < 0 else [self.adapters[model]])

    def networks_in_step(self, model):
        """At the strengths that they have in this step; a text encoder reads the prompt for the whole sampling."""
        if model == MERGED:
            return self.networks_of(model)
        everywhere = self.ramped(self.everywhere, self.of_everywhere)
        return everywhere + ([] if model < 0 else [self.ramped(self.adapters, self.ramps)[model]])

    def ramped(self, adapters, ramps):
        factors = [ramp(self.fraction) if ramp else 1 for ramp in ramps or [None] * len(adapters)]
        return [(name, te, unet * factor, *rank) for (name, te, unet, *rank), factor in zip(adapters, factors)]

    def text(self, model, number, place):
        """As long as the longest sub-prompt of the batch as this model reads it."""
        own = self.words[model] if 0 <= model < len(self.words) else ""
        reader = MERGED if self.settings.text_encoder == "merged" else model
        conditions = [[self.condition(reader, text, own) for text, _ in subprompts] for subprompts in self.prompts]
        longest = max(length(condition) for subprompts in conditions for condition in subprompts)
        if place is None:
            return self.host.negative_as_long(self.condition(reader, self.negative), longest)
        return lengthened(conditions[number][place], longest)

    def condition(self, reader, text, words=""):
        text = (text(self.call) if callable(text) else text) + (f", {words}" if words else "")
        key = reader, text, id(self.host.shared.sd_model)
        if key not in self.encoded:
            self.encoded[key] = self.host.encode(self.networks_of(reader), text, self.size)
        return self.encoded[key]


def latents(host, adapters, prompts, *args, **fields):
    return Equations(host, adapters, prompts, *args, **fields).latents()


def map_text(function, text):
    """Applies `function` to the tokens of a condition, `[rows, tokens, width]`, and leaves pooled text alone."""
    if isinstance(text, dict):
        return {key: function(value) if value.dim() == 3 else value for key, value in text.items()}
    return function(text)


def length(text):
    return (text["crossattn"] if isinstance(text, dict) else text).shape[1]


def lengthened(text, tokens):
    """By its last token, as hosts do for sub-prompts of unequal length."""
    return map_text(lambda t: torch.cat([t, t[:, -1:].expand(-1, tokens - t.shape[1], -1)], 1), text)
