"""Other extensions in the Forge family: control, wrappers, patches, guidance, and conditions of their own."""

import pytest
import torch
from equations import assert_close
from internals import LoratorioError
from oracle import Equations
from oracle import latents as by_equations
from samples import BOTH_TAGS, LONG, ON, TAGS, TEXT, TEXT_TAGS, A, B, of_tags, one, verified

SINGLE = 1e-5
BOTH = pytest.mark.parametrize("tags", BOTH_TAGS.values(), ids=BOTH_TAGS)
TWO = [[("a cat", 1), ("a dog", 0.5)]]

# Control, and wrappers of the model


def controlled(forge, pictures, links):
    def add(p):
        unet = forge.changed_patcher(p)
        for link in range(links):
            hint = torch.linspace(-1, 2, pictures * 30, dtype=torch.float64).reshape(pictures, 1, 5, 6) * (link + 1)
            unet.add_patched_controlnet(forge.model.ControlNet(hint))

    return add


@pytest.mark.parametrize("links", [1, 2])
@BOTH
def test_control(forge, tags, links):
    before = [controlled(forge, pictures=2, links=links)]
    prompts = [f"a cat AND a tree:0.5 {tags}", "a dog AND a bird:0.5"]
    subprompts = [[("a cat", 1), ("a tree", 0.5)], [("a dog", 1), ("a bird", 0.5)]]
    right = by_equations(forge, of_tags(tags), subprompts, "bad", before=before, steps=2)
    fields = {"before": before, "batch_size": 2, "negative_prompt": "bad", "steps": 2}
    portions = [forge.portions[1], 4.5, forge.portions[-1]]
    for p, latents in forge.in_portions(prompts, {**ON, "verify": True}, portions=portions, **fields):
        assert_close(latents, right)
        assert verified(p) < SINGLE
        forge.assert_clean(p)


@BOTH
def test_an_earlier_wrapper_is_called_through(forge, tags):
    def wrapped(p):
        def wrapper(apply_model, args):
            marks = forge.marks(args).reshape(-1, 1, 1, 1)
            return apply_model(args["input"] * (1.1 + 0.2 * marks), args["timestep"] * 0.9, **args["c"])

        forge.changed_patcher(p).set_model_unet_function_wrapper(wrapper)

    settings, others = {"end": 0.5}, {"before": [wrapped]}
    p, latents = forge.generate(
        f"a cat {tags}", {**ON, **settings, "verify": True}, negative_prompt="bad", batch_size=2, **others
    )
    assert_close(latents, by_equations(forge, of_tags(tags), one("a cat") * 2, "bad", settings=settings, **others))
    assert verified(p) < SINGLE
    forge.assert_clean(p)


@pytest.mark.parametrize(("blocks", "models"), [(1, {3}), (2, {1})])
def test_attention_shared_among_a_batch_sees_one_model_at_a_time(forge, blocks, models, monkeypatch):
    seen = set()
    forge.replace_model(monkeypatch, lambda apply_model, x: seen.add(x.shape[0] // 2) or apply_model())

    def shared(p):
        forge.changed_patcher(p).model_options["transformer_options"] = {
            "patches_replace": {"attn1": {("input", number): None for number in range(blocks)}}
        }

    p, latents = forge.generate(f"a cat {TAGS}", ON, before=[shared])
    monkeypatch.undo()
    assert seen == models
    assert_close(latents, by_equations(forge, [A, B], one("a cat")))
    forge.assert_clean(p)


def test_a_wrapper_may_make_other_batches_of_the_rows(forge):
    """As one that evaluates a picture in tiles does: all rows' first tile, then all rows' second."""

    def in_halves(p):
        def wrapper(apply_model, args):
            both = apply_model(**forge.repeated(args, 2))
            return both.chunk(2)[1]

        forge.changed_patcher(p).model_options["model_function_wrapper"] = wrapper

    p, latents = forge.generate(f"a cat {TEXT_TAGS}", {**ON, "verify": True}, before=[in_halves], batch_size=2)
    assert_close(latents, by_equations(forge, of_tags(TEXT_TAGS), one("a cat") * 2))
    assert verified(p) < SINGLE


def test_a_wrapper_may_return_the_same_memory_in_each_call(forge):
    """As some that gather tiles in a buffer do."""

    def into_a_buffer(p):
        buffers = {}

        def wrapper(apply_model, args):
            prediction = apply_model(args["input"], args["timestep"], **args["c"])
            return buffers.setdefault(prediction.shape, torch.empty_like(prediction)).copy_(prediction)

        forge.changed_patcher(p).model_options["model_function_wrapper"] = wrapper

    p, latents = forge.generate(f"a cat {TAGS}", {**ON, "verify": True}, before=[into_a_buffer])
    assert_close(latents, by_equations(forge, [A, B], one("a cat")))
    assert 0 < verified(p) < 1e-9


def test_a_later_wrapper_that_calls_no_other_is_refused(forge):
    def replace(p):
        forge.changed_patcher(p).set_model_unet_function_wrapper(lambda apply_model, args: args["input"])

    with pytest.raises(LoratorioError, match="calls no other"):
        forge.generate(f"a cat {TAGS}", ON, after=[replace])
    assert_close(forge.generate(f"a cat {TAGS}", ON)[1], by_equations(forge, [A, B], one("a cat")))


@pytest.mark.parametrize("tags", ["<lora:a:0.8>", TAGS], ids=["one", "several"])
def test_patches_of_another_extension_are_part_of_the_base(forge, tags):
    frozen = forge.add("frozen", {"to_k": "lora", "to_v": "full"}, seed=9)
    adapters = [A] if tags == "<lora:a:0.8>" else [A, B]
    settings, others = {"end": 0.5}, {"before": [lambda p: forge.patch(forge.changed_patcher(p), frozen)]}
    p, latents = forge.generate(f"a cat {tags}", {**ON, **settings, "verify": True}, **others)
    assert_close(latents, by_equations(forge, adapters, one("a cat"), settings=settings, **others), SINGLE)
    assert verified(p) < SINGLE
    forge.assert_clean(p)


def test_later_extensions_copy_the_patchers_options(forge):
    """Deeply, and sample with their copies."""

    def later(p):
        for _ in range(2):
            forge.changed_patcher(p).set_model_sampler_cfg_function(
                lambda args: args["uncond"] + 1.7 * (args["cond"] - args["uncond"])
            )

    p, latents = forge.generate(f"a cat {TEXT_TAGS}", ON, after=[later])
    assert_close(latents, by_equations(forge, [A, TEXT, B], one("a cat"), cfg=1.7))
    forge.assert_function_of_rows_is_the_hosts()
    _, ordinary = forge.generate(f"a cat {TEXT_TAGS}", after=[later])
    assert torch.equal(ordinary, forge.merged_picture(f"a cat {TEXT_TAGS}", after=[later]))
    assert "model_function_wrapper" not in p.sd_model.forge_objects.unet.model_options


# Guidance that evaluates further rows


class Perturbed(Equations):
    """Guided away from the prediction with perturbed attention."""

    def guided(self, number, x, sigma, cond, omegas):
        perturbed = [
            self.aside(number, x, sigma, place, omega, options={"perturbed": True})
            for place, omega in enumerate(omegas)
        ]
        degraded = self.blended(number, perturbed)
        return super().guided(number, x, sigma, cond, omegas) + (cond - degraded) * 2

    @staticmethod
    def extension(forge, calc):
        def add(p):
            def post_cfg(args):
                options = {
                    **args["model_options"],
                    "transformer_options": {**args["model_options"]["transformer_options"], "perturbed": True},
                }
                degraded, _ = calc(args["model"], args["cond"], None, args["input"], args["sigma"], options)
                return args["denoised"] + (args["cond_denoised"] - degraded) * 2

            forge.changed_patcher(p).set_model_sampler_post_cfg_function(post_cfg)

        return add


class SelfAttention(Equations):
    """Guided away from the prediction for the negative prompt on other latents."""

    def guided(self, number, x, sigma, cond, omegas):
        guided, uncond = super().guided(number, x, sigma, cond, omegas), self.negative_prediction
        return guided + (uncond - self.unconditional_of(number, x * 0.8, sigma, omegas)) * 2

    def unconditional(self, *args):
        self.negative_prediction = super().unconditional(*args)
        return self.negative_prediction

    def unconditional_of(self, *args):
        return super().unconditional(*args, keeping=False, unconditional=False)

    @staticmethod
    def extension(forge, calc):
        def add(p):
            def post_cfg(args):
                model, options = args["model"], args["model_options"]
                degraded, _ = calc(model, args["uncond"], None, args["input"] * 0.8, args["sigma"], options)
                return args["denoised"] + (args["uncond_denoised"] - degraded) * 2

            forge.changed_patcher(p).set_model_sampler_post_cfg_function(post_cfg, disable_cfg1_optimization=True)

        return add


GUIDANCE = pytest.mark.parametrize("guidance", [Perturbed, SelfAttention], ids=["perturbed", "self"])


@GUIDANCE
@pytest.mark.parametrize("prompt", ["a cat", "a cat AND a dog:0.5", LONG])
@BOTH
def test_guidance_of_another_extension_is_composed_with_the_steps_weights(forge, guidance, prompt, tags):
    subprompts = TWO if "AND" in prompt else one(prompt)
    right = guidance(forge, of_tags(tags), subprompts * 2, "bad", settings={"end": 0.6}).latents()
    settings, fields = {**ON, "end": 0.6, "verify": True}, {"batch_size": 2, "negative_prompt": "bad"}
    for when in ("after", "before"):
        others = {when: [guidance.extension(forge, forge.evaluate_conditions)]}
        p, latents = forge.generate(f"{prompt} {tags}", settings, **fields, **others)
        assert_close(latents, right)
        assert verified(p) < SINGLE
    forge.assert_clean(p)


@GUIDANCE
def test_such_guidance_by_the_hosts_function_of_the_moment(forge, guidance):
    now = guidance.extension(forge, lambda *args: forge.evaluate_conditions_now(*args))
    _, latents = forge.generate(f"a cat {TEXT_TAGS}", ON, after=[now], negative_prompt="bad")
    assert_close(latents, guidance(forge, [A, TEXT, B], one("a cat"), "bad").latents())


def test_such_guidance_in_short_memory(forge):
    right = Perturbed(forge, [A, TEXT, B], TWO, "bad").latents()
    fields = {"after": [Perturbed.extension(forge, forge.evaluate_conditions)], "negative_prompt": "bad"}
    for _, latents in forge.in_portions(f"a cat AND a dog:0.5 {TEXT_TAGS}", ON, **fields):
        assert_close(latents, right)


@pytest.mark.parametrize("method", ["composite", "switch"])
@GUIDANCE
def test_such_guidance_with_methods_without_weights(forge, method, guidance):
    settings, others = {"method": method}, {"after": [guidance.extension(forge, forge.evaluate_conditions)]}
    _, latents = forge.generate(f"a cat {TEXT_TAGS}", {**ON, **settings}, negative_prompt="bad", **others)
    assert_close(latents, guidance(forge, [A, TEXT, B], one("a cat"), "bad", settings=settings).latents())


def test_such_guidance_where_sub_prompts_are_alike(forge):
    others = {"after": [Perturbed.extension(forge, forge.evaluate_conditions)]}
    _, latents = forge.generate(f"a cat AND a cat:0.5 {TAGS}", ON, batch_size=2, **others)
    assert_close(latents, Perturbed(forge, [A, B], [[("a cat", 1), ("a cat", 0.5)]] * 2).latents())


@GUIDANCE
def test_such_guidance_where_prompt_and_negative_prompt_are_alike(forge, guidance):
    others = {"after": [guidance.extension(forge, forge.evaluate_conditions)]}
    _, latents = forge.generate(f"a cat {TEXT_TAGS}", {**ON, "end": 0.6}, negative_prompt="a cat", **others)
    assert_close(latents, guidance(forge, [A, TEXT, B], one("a cat"), "a cat", settings={"end": 0.6}).latents())


def test_such_guidance_does_not_change_what_later_steps_reuse(forge):
    """Here one that evaluates the negative prompt of a changed picture."""
    settings = {"guidance_every": 2}
    others = {"after": [SelfAttention.extension(forge, forge.evaluate_conditions)]}
    _, latents = forge.generate(f"a cat {TAGS}", {**ON, **settings}, steps=4, **others)
    assert_close(latents, SelfAttention(forge, [A, B], one("a cat"), settings=settings, steps=4).latents(), 1e-6)


@GUIDANCE
@pytest.mark.parametrize("settings", [{"refresh_every": 2}, {"refresh_every": 3, "lam": 1.0}], ids=str)
def test_such_guidance_where_each_lora_is_alone_in_some_steps_only(forge, guidance, settings):
    """In those between its further rows are the merged model's, moved as the step's are."""
    others = {"after": [guidance.extension(forge, forge.evaluate_conditions)], "negative_prompt": "bad"}
    _, latents = forge.generate(f"a cat AND a dog:0.5 {TEXT_TAGS}", {**ON, **settings}, steps=4, **others)
    right = guidance(forge, [A, TEXT, B], TWO, "bad", settings=settings, steps=4).latents()
    assert_close(latents, right, 1e-6)


class Skipping(Equations):
    """The negative prompt's prediction is one with perturbed attention."""

    def unconditional(self, number, x, sigma, omegas):
        return super().unconditional(number, x, sigma, omegas, options={"perturbed": True})

    @staticmethod
    def extension(reforge):
        """As in the host's own skip-layer guidance: conditional and unconditional rows are evaluated apart."""

        def evaluated(args):
            (cond, uncond), options, calc = args["conds"], args["model_options"], reforge.evaluate_conditions
            perturbed = {**options, "transformer_options": {**options["transformer_options"], "perturbed": True}}
            model, inputs = args["model"], (args["input"], args["sigma"])
            return [calc(model, cond, None, *inputs, options)[0], calc(model, None, uncond, *inputs, perturbed)[1]]

        return lambda p: reforge.changed_patcher(p).set_model_sampler_calc_cond_batch_function(evaluated)


@BOTH
def test_reforge_has_a_slot_for_evaluations_whose_earlier_function_is_called_through(reforge, tags):
    before = [Skipping.extension(reforge)]
    p, latents = reforge.generate(f"a cat {tags}", {**ON, "verify": True}, before=before, batch_size=2)
    assert_close(latents, Skipping(reforge, of_tags(tags), one("a cat") * 2).latents())
    assert verified(p) < SINGLE
    reforge.assert_clean(p)


def test_a_later_function_in_that_slot_that_evaluates_apart_is_refused(reforge):
    p = reforge.request(f"a cat {TAGS}", ON, after=[Skipping.extension(reforge)])
    with pytest.raises(LoratorioError, match="evaluates the negative prompt alone"):
        reforge.processing.process_images(p)
    p.sd_model.forge_objects.unet = p.former.unet  # in whose place the other extension has put a clone
    reforge.assert_clean(p)


# Conditions that are changed


def modified(forge, change):
    """An extension that changes the conditional conditions by `change`."""

    def modifier(model, x, timestep, uncond, cond, *rest):
        return model, x, timestep, uncond, change(cond), *rest

    return [lambda p: forge.changed_patcher(p).add_conditioning_modifier(modifier)]


def test_conditions_that_another_extension_keeps_are_handed_back_as_they_were(forge):
    kept = []

    def keep(model, x, timestep, uncond, cond, *rest):
        kept.extend([*cond, *uncond])
        return model, x, timestep, uncond, cond, *rest

    before = [lambda p: forge.changed_patcher(p).add_conditioning_modifier(keep)]
    forge.generate(f"a cat {TEXT_TAGS}", ON, before=before)
    assert kept and {key for condition in kept for key in condition["model_conds"]} == {"c_crossattn"}


def test_conditions_with_areas_are_refused(forge):
    divided = modified(forge, lambda cond: [{**c, "area": (2, 2, 0, 0)} for c in cond])
    p = forge.request(f"a cat {TAGS}", ON, before=divided)
    with pytest.raises(LoratorioError, match="divided by areas"):
        forge.processing.process_images(p)
    forge.assert_clean(p)


def test_prompts_that_another_extension_adds(forge):
    twice = modified(forge, lambda cond: cond * 2)
    _, latents = forge.generate(f"a cat {TAGS}", ON, before=twice)
    assert_close(latents, by_equations(forge, [A, B], [[("a cat", 1), ("a cat", 1)]]))
    with pytest.raises(LoratorioError, match="another extension adds prompts"):
        forge.generate(f"a cat {TEXT_TAGS}", ON, before=twice)


class Masked(Equations):
    """The first sub-prompt for the upper half, the second one for the rest and the whole."""

    def blended(self, number, predictions):
        upper = torch.zeros(5, 6, dtype=torch.float64)
        upper[:2] = 1
        masks = upper, 0.5 * torch.ones_like(upper)
        return sum(mask * e for mask, e in zip(masks, predictions)) / sum(masks)


@BOTH
def test_masks(forge, tags):
    upper = torch.zeros(1, 5, 6, dtype=torch.float64)
    upper[:, :2] = 1
    masked = modified(forge, lambda cond: [{**cond[0], "mask": upper}, cond[1]])
    _, latents = forge.generate(f"a cat AND a dog:0.5 {tags}", ON, before=masked)
    assert_close(latents, Masked(forge, of_tags(tags), TWO).latents())


class InTheirTime(Equations):
    """The first sub-prompt takes part only in the beginning; the guidance goes by the strengths of both."""

    def picture(self, number, x, sigma):
        every = self.prompts
        self.prompts = [subprompts if sigma[0] >= 1.5 else subprompts[1:] for subprompts in every]
        result = super().picture(number, x, sigma)
        self.prompts = every
        return result

    def strength(self, number):
        return 1.5


@BOTH
def test_conditions_outside_their_time(forge, tags):
    timed = modified(forge, lambda cond: [{**cond[0], "timestep_end": 1.5}, cond[1]])
    _, latents = forge.generate(f"a cat AND a dog:0.5 {tags}", ON, before=timed)
    assert_close(latents, InTheirTime(forge, of_tags(tags), TWO).latents())
