"""What only AUTOMATIC1111's WebUI does: padding of prompts, guidance left out, kinds of files, folders, its options."""

import json
from pathlib import PureWindowsPath

import internals
import pytest
import torch
from equations import assert_close
from internals import LoratorioError, OddError
from oracle import latents as by_equations
from samples import BOTH_TAGS, LONG, NOTE, ON, POOL, TAGS, TEXT, TEXT_TAGS, A, B, of_tags, one, verified

# Rows


@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
@pytest.mark.parametrize("tags", BOTH_TAGS.values(), ids=BOTH_TAGS)
def test_pictures_of_a_batch_may_have_different_numbers_of_sub_prompts(a1111, sampler, tags):
    prompts = [f"a cat AND a dog:0.4 {tags}", "a bird AND a fish:1.7 AND a tree:-0.3"]
    subprompts = [[("a cat", 1), ("a dog", 0.4)], [("a bird", 1), ("a fish", 1.7), ("a tree", -0.3)]]
    right = by_equations(a1111, of_tags(tags), subprompts, "bad", sampler=sampler)
    fields = {"batch_size": 2, "sampler_name": sampler, "negative_prompt": "bad"}
    for p, latents in a1111.in_portions(prompts, ON, **fields):
        assert_close(latents, right)
        a1111.assert_clean(p)


@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
def test_steps_without_guidance_of_pictures_with_different_weights(a1111, sampler):
    a1111.shared.opts.skip_early_cond = 0.5
    prompts = [f"a cat AND a dog:0.4 {TEXT_TAGS}", "a bird AND a fish:1.7"]
    subprompts = [[("a cat", 1), ("a dog", 0.4)], [("a bird", 1), ("a fish", 1.7)]]
    fields = {"sampler": sampler, "skipped": lambda call: call / 3 <= 0.5}
    right = by_equations(a1111, [A, TEXT, B], subprompts, **fields)
    for _, latents in a1111.in_portions(prompts, ON, batch_size=2, sampler_name=sampler):
        assert_close(latents, right)


def test_guidance_left_out_at_small_sigmas(a1111):
    _, latents = a1111.generate(f"a cat {TAGS}", ON, s_min_uncond=9.0)
    assert_close(latents, by_equations(a1111, [A, B], one("a cat"), skipped=lambda call: call % 2))


@pytest.mark.parametrize("pad", [None, "pad_cond_uncond_v0", "pad_cond_uncond"])
@pytest.mark.parametrize("dicts", [False, True], ids=["tensors", "dicts"])
def test_prompts_of_unequal_length_are_padded_as_the_host_pads(a1111, pad, dicts):
    a1111.use(dict_conditions=dicts)
    a1111.add_networks()
    if pad:
        setattr(a1111.shared.opts, pad, True)
    subprompts = [[(LONG, 1), ("a dog", 0.5)], [("a bird", 1)]]
    right = by_equations(a1111, [A, TEXT, B], subprompts, "bad")
    prompts = [f"{LONG} AND a dog:0.5 {TEXT_TAGS}", "a bird"]
    for _, latents in a1111.in_portions(prompts, ON, batch_size=2, negative_prompt="bad"):
        assert_close(latents, right)
    assert a1111.errors.reported == []


# Networks


def test_a_network_of_lower_rank_by_its_tag(a1111):
    _, latents = a1111.generate("a cat <lora:b:1:1:1> <lora:a:0.8>", ON)
    assert_close(latents, by_equations(a1111, [("b", 1.0, 1.0, 1), (*A, None)], one("a cat")))


def test_a_network_without_strength_stays_loaded(a1111):
    p, latents = a1111.generate("a cat <lora:a:0> <lora:b:0.6> <lora:text:0:0>", ON)
    assert_close(latents, by_equations(a1111, [B], one("a cat")))
    assert [net.name for net in a1111.networks.loaded_networks] == ["a", "b", "text"]
    a1111.assert_clean(p)


def test_a_refiner_loaded_from_its_file_leaves_no_network_loaded(a1111, monkeypatch):
    """To encode an empty prompt for a model that it has loaded, the host unloads all networks."""
    monkeypatch.setattr(a1111.processing.Processing, "model_changed", lambda p: a1111.networks.load_networks([]))
    refiner = {"refiner": a1111.model.SdModel(seed=9), "refiner_switch_at": 0.5}
    for settings in (None, ON):
        a1111.generate(f"a cat {TEXT_TAGS}", settings, **refiner)
        assert a1111.networks.loaded_networks == []


def test_words_that_a_network_brings_along(a1111):
    a1111.add("word", {"to_q": "lora"}, seed=6, embeddings={"glyph": torch.arange(6.0)})
    _, latents = a1111.generate("a glyph <lora:word:1> <lora:b:0.6>", ON)
    assert_close(latents, by_equations(a1111, [("word", 1.0, 1.0), B], one("a glyph")))
    assert list(a1111.shared.sd_model.cond_stage_model.embeddings) == ["glyph"], (
        "as the host has it while the network is loaded"
    )


def test_merging_in_the_forward_itself(a1111):
    a1111.shared.opts.lora_functional = True
    settings = {"end": 0.5}
    p, latents = a1111.generate(f"a cat {TAGS}", {**ON, **settings, "verify": True})
    assert_close(latents, by_equations(a1111, [A, B], one("a cat"), settings=settings))
    assert verified(p) < 1e-12
    a1111.shared.opts.lora_functional = False
    _, latents = a1111.generate(f"a cat {TAGS}", {**ON, **settings})
    assert_close(latents, by_equations(a1111, [A, B], one("a cat"), settings=settings))
    a1111.assert_clean(p)


def test_networks_upon_a_global_one_without_a_merge(a1111):
    """In functional mode the host computes each one's change from the layer's own weight."""
    a1111.add("under", dict.fromkeys(a1111.over, "full"), seed=7)
    a1111.add("over", a1111.over, seed=8)
    a1111.shared.opts.lora_functional = True
    tags = "<lora:under:1{}> <lora:over:0.7>"
    p, latents = a1111.generate(f"a cat {tags.format(':lt=global')}", {**ON, "lam": 0.0, "verify": True})
    assert verified(p) < 1e-9
    assert_close(latents, a1111.merged_picture(f"a cat {tags.format('')}"))


@pytest.mark.parametrize(("tags", "pool"), [(TEXT_TAGS, ""), ("<lora:a:0.8>", "b:0.6, text")], ids=["prompt", "pool"])
def test_a_request_reads_each_file_once(a1111, monkeypatch, tags, pool):
    read = a1111.files_read(monkeypatch)
    a1111.generate(f"a cat {tags}", {**ON, "pool": pool, "verify": True}, n_iter=2, enable_hr=True)
    assert sorted(read) == ["a", "b", "text"]


def test_layers_that_cannot_be_applied_are_left_out_as_the_host_leaves_them_out(a1111):
    a1111.networks.available_networks["b"].layers["diffusion_model_to_q"] = {"diff": torch.zeros(3, 3)}
    p, latents = a1111.generate(f"a cat {TAGS}", ON)
    assert "1 of 4 layers" in p.extra_generation_params[NOTE] and "'b'" in p.extra_generation_params[NOTE]
    assert_close(latents, by_equations(a1111, [A, B], one("a cat")))


def test_a_network_of_which_no_layer_can_be_applied_may_be_left_to_the_host(a1111):
    a1111.add("misfit", {"to_q": "misfit"})
    prompt = f"a cat {TAGS} <lora:misfit:1>"
    ordinary = a1111.merged_picture(prompt)
    a1111.shared.opts.loratorio_stop_on_error = False
    p, latents = a1111.generate(prompt, ON)
    assert torch.equal(latents, ordinary)
    (message,) = p.comments
    assert p.extra_generation_params == {NOTE: message}
    assert "misfit" in message and "none of the 1 layers" in message
    assert message.endswith("This makes the picture the WebUI's ordinary one.")
    assert message in a1111.gradio.warnings and a1111.errors.reported == []
    a1111.assert_clean(p)


def test_a_network_made_for_an_inpainting_model(a1111):
    """The host pads every delta of a 9-channel layer by 5 channels, also one that has 9, which then does not fit."""
    conv_in = a1111.use(channels=9).model.diffusion_model.conv_in
    a1111.networks.available_networks["b"].layers["diffusion_model_conv_in"] = {
        "lora_up.weight": torch.full((8, 1, 1, 1), 0.3).double(),
        "lora_down.weight": torch.full((1, *conv_in.weight.shape[1:]), 0.3).double(),
    }
    p, _ = a1111.generate(f"a cat {TAGS}", {**ON, "verify": True})
    assert verified(p) < 1e-9
    assert "1 of 3 layers of the LoRA 'b' could not be applied" in p.extra_generation_params[NOTE]


# Models


@pytest.mark.parametrize(
    ("decline", "word"),
    [
        (lambda host: setattr(host.shared.sd_model, "is_sd3", True), "SD3"),
        (lambda host: setattr(host.sd_unet, "current_unet", object()), "SD Unet"),
    ],
    ids=["SD3", "SD Unet"],
)
def test_declined_models_are_ordinary_pictures_and_a_note(a1111, decline, word):
    decline(a1111)
    p, latents = a1111.generate(f"a cat {TAGS}", ON)
    assert torch.equal(latents, a1111.merged_picture(f"a cat {TAGS}"))
    assert word in p.extra_generation_params[NOTE]


@pytest.mark.parametrize(
    ("version", "metadata", "noted", "suits"),
    [
        ("Unknown", {}, None, True),
        ("SD1", {"ss_base_model_version": "sd_v1"}, None, True),
        ("SDXL", {"ss_base_model_version": "sdxl_base_v1-0"}, None, False),
        ("SD2", {"ss_v2": "True"}, None, False),
        ("SDXL", {"ss_base_model_version": "sdxl_base_v1-0"}, "SD1", True),
        ("SD1", {"format": "pt"}, "SDXL", False),
        ("SDXL", {}, "Unknown", True),
    ],
)
def test_files_for_another_kind_of_model_are_not_in_a_pool(a1111, tmp_path, version, metadata, noted, suits):
    """The host would apply what has the same names."""
    entry = a1111.networks.available_networks["b"]
    entry.filename, entry.metadata = str(tmp_path / "b.safetensors"), metadata
    entry.sd_version = a1111.network.SdVersion[version]
    if noted:
        (tmp_path / "b.json").write_text(json.dumps({"sd version": noted}))
    p, _ = a1111.generate("a cat <lora:a:0.8>", {**ON, "pool": "b, text"}, steps=1)
    assert p.extra_generation_params[POOL] == ("step 1: a, b, text" if suits else "step 1: a, text")
    assert ("left out: b." in p.extra_generation_params.get(NOTE, "")) == (not suits)
    assert NOTE not in a1111.generate("a cat <lora:b:0.8>", ON, steps=1)[0].extra_generation_params


@pytest.mark.parametrize(("metadata", "suits"), [({"format": "pt"}, True), ({"ss_v2": "False"}, False)])
def test_what_the_host_takes_for_sd1s_may_be_sdxls_unless_the_trainer_has_told(a1111, metadata, suits):
    a1111.shared.sd_model.is_sd1, a1111.shared.sd_model.is_sdxl = False, True
    entry = a1111.networks.available_networks["b"]
    entry.metadata, entry.sd_version = metadata, a1111.network.SdVersion.SD1
    p, _ = a1111.generate("a cat <lora:a:0.8>", {**ON, "pool": "b, text"}, steps=1)
    assert p.extra_generation_params[POOL] == ("step 1: a, b, text" if suits else "step 1: a, text")


# Folders


def test_files_of_every_folder_of_networks(a1111):
    files = {
        "a": "/loras/styles/v1.5/a.safetensors",
        "b": "/lycoris/b.pt",
        "text": "/more/x/text.ckpt",
        "other": "/elsewhere/x/other.pt",
        "foreign": "/loras2/foreign.pt",
    }
    for name, filename in files.items():
        a1111.networks.available_networks[name].filename = filename
    vars(a1111.shared.cmd_opts).update(lyco_dir_backcompat="/lycoris", lora_dirs=["/more", "/others"])
    paths = {"a": "styles/v1.5/a", "b": "b", "text": "x/text", "other": "other", "foreign": "foreign"}
    assert internals.paths_of_networks() == paths
    vars(a1111.shared.cmd_opts).update(lyco_dir_backcompat=None, lora_dirs=[])
    assert internals.paths_of_networks()["b"] == "b" and internals.paths_of_networks()["text"] == "text"


def test_folders_on_several_drives(a1111, monkeypatch):
    internals.make_paths(monkeypatch, PureWindowsPath)
    a1111.shared.cmd_opts.lora_dir, a1111.shared.cmd_opts.lora_dirs = r"C:\webui\Lora", [r"D:\loras"]
    files = {
        "a": r"c:\WebUI\Lora\styles\a.safetensors",
        "b": r"D:\loras\old\b.safetensors",
        "text": r"E:\text.safetensors",
    }
    for name, filename in files.items():
        a1111.networks.available_networks[name].filename = filename
    paths = internals.paths_of_networks()
    assert (paths["a"], paths["b"], paths["text"]) == ("styles/a", "old/b", "text")


# Errors


@pytest.mark.parametrize("where", ["plan", "combine"])
def test_an_error_in_a_callback_is_told_by_its_name(a1111, monkeypatch, where):
    """The host itself prints and ignores it."""
    internals.break_method(monkeypatch, where, OddError("a mistake"))
    with pytest.raises(LoratorioError, match="OddError: a mistake"):
        a1111.generate(f"a cat {TEXT_TAGS}", ON)
