"""The command line: pictures without a WebUI, made by diffusers."""

from __future__ import annotations

import argparse
import base64
import importlib.util
import logging
import math
import os
import random
import re
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from lib_loratorio import __version__
from lib_loratorio.declaration import Choice, Flag
from lib_loratorio.errors import NAME, LoratorioError, SettingsError, told, untold
from lib_loratorio.loras.argument import name_of, read_argument
from lib_loratorio.loras.tag import LOCAL, LoraTag, acts
from lib_loratorio.page.settings_table import markdown
from lib_loratorio.settings import INFOTEXT, METHODS, POOL, SETTINGS, Settings

NEEDED = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "PIL")
INSTALL = "pip install torch diffusers transformers peft accelerate safetensors pillow"

LIBRARIES = (
    "accelerate",
    "diffusers",
    "filelock",
    "httpx",
    "huggingface_hub",
    "peft",
    "torch",
    "transformers",
    "urllib3",
)
"""Those that log what they do."""

ON_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+")
"""The names of models on the Hugging Face hub."""

OPTIONS = [name for name in SETTINGS if SETTINGS[name].option]
"""The settings that have an option each."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status: 2 after an error of the user's, told in one line."""
    try:
        options = _parser().parse_args(argv)
        return options.command(options)
    except LoratorioError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(told("interrupted."), file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise LoratorioError(f"{message.rstrip('.')}; {self.prog} --help lists the options.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=NAME.lower() if Path(sys.argv[0]).stem == NAME.lower() else "python -m lib_loratorio",
        description="Composes several LoRAs in one picture without merging their weights.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="command")
    settings = commands.add_parser("settings", help="print what docs/settings.md says of the settings")
    settings.set_defaults(command=_print_settings)
    generate = commands.add_parser("generate", help="make pictures from a prompt")
    generate.set_defaults(command=_generate)
    add = generate.add_argument
    add(
        "--model",
        type=Path,
        required=True,
        metavar="MODEL",
        help="diffusers folder of SD 1.x, SD 2.x, SDXL, SD 3 or FLUX.1, its name on the Hugging Face hub, or "
        ".safetensors checkpoint of SD 1.x, SD 2.x or SDXL",
    )
    add("--config", type=Path, help="for a checkpoint, offline: folder with the pipeline's json and tokenizer files")
    add(
        "--lora",
        type=parse_lora,
        action="append",
        default=[],
        metavar="FILE[:STRENGTH][:ltstart=S][:ltend=E][:lt=global][:ltat=PLACE][:ltbox=L,T,R,B][:ltw=RAMP]"
        "[:lbw=WEIGHTS][:start=N][:stop=N][:prompt=WORDS]",
        help="once for each LoRA; strength 1 if not given; ltstart and ltend: the part of the sampling, 0 to 1, that "
        "it takes part in; lt=global: it belongs to the base and to every other LoRA instead of competing for places; "
        "ltat and ltbox: where in the picture it may be, such as ltat=left or ltbox=0,0,0.5,1, several with +; "
        "ltw: factors on the strength over the sampling, such as ltw=0@0,1@0.3,0.2@1; "
        "prompt, last of all: words that it alone reads, behind the prompt; "
        "lbw: block weights, 12, 17, 20 or 26 numbers or a preset such as OUTALL; start and stop: in steps",
    )
    add(
        "--pool",
        type=parse_pool,
        action="extend",
        default=[],
        metavar="FILE_OR_FOLDER[:STRENGTH]",
        help="LoRAs beside these, which may be left out of steps in which they matter little (--pool-mode scout); "
        "of a folder all that lie in it as .safetensors; may be given more than once",
    )
    add("--mask", type=Path, metavar="IMAGE", help="where each LoRA may be, in the LoRAs' colours (docs/places.md)")
    add("--prompt", required=True)
    add("--negative", default="", help="negative prompt")
    add("--steps", type=_whole(1), default=25)
    add("--cfg", type=_number, help="guidance scale; default: 7, for FLUX.1 1, which is without a negative prompt")
    add("--distilled-cfg", type=_number, help="the guidance that FLUX.1-dev has embedded; default: 3.5")
    add("--seed", type=int, default=-1, help="of the first picture, the next has the next; -1: a random one")
    add("--size", type=parse_size, help="WxH or N, in pixels; default: the model's own")
    add("--batch", type=_whole(1), default=1, help="pictures")
    add("--scheduler", help="default: the model's own; an unknown name lists all")
    add("--out", type=Path, default=Path("outputs"), help="folder, or a .png file")
    add("--maps", action="store_true", help="also draw where each LoRA weighed most")
    add("--device", help="default: cuda where there is one, else cpu")
    add(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        help="default: on cuda bfloat16 for SD 3 and FLUX.1, float16 for others; else float32",
    )
    _add_settings(generate.add_argument_group("composition"))
    return parser


def _add_settings(group: argparse._ArgumentGroup) -> None:
    """Adds an option for each setting that has one."""
    for name in OPTIONS:
        declared = SETTINGS[name]
        flag, told_of, kind = f"--{name.replace('_', '-')}", declared.described.replace("%", "%%"), declared.kind
        if isinstance(kind, Flag):
            group.add_argument(flag, action="store_true", help=told_of)
            continue
        values = {"choices": list(kind.choices)} if isinstance(kind, Choice) else {}
        if declared.unit:
            values["metavar"] = declared.unit.upper().replace(" ", "_")
        group.add_argument(flag, default=declared.default, help=f"{told_of} (default: %(default)s)", **values)


def parse_lora(text: str) -> tuple[Path, float, LoraTag]:
    """The path, strength and tag of a LoRA: see `read_argument`."""
    try:
        return read_argument(text)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(untold(str(error))) from None


def parse_pool(text: str) -> list[tuple[Path, float, LoraTag, bool]]:
    """The LoRAs that `file`, `folder`, or either with `:strength` means: paths, strengths, tags, and that they are of
    the pool.
    """
    path, strength, tag = parse_lora(text)
    if tag != LOCAL:
        raise argparse.ArgumentTypeError(
            f"{path.name} is of the pool, which has no {tag.text[1:] or 'prompt'}; give it with --lora"
        )
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise argparse.ArgumentTypeError(f"there is no .safetensors file in {path}")
    return [(file, strength, LOCAL, True) for file in files]


def parse_size(text: str) -> tuple[int, int]:
    """`WxH` or `N` to (width, height)."""
    sides = text.lower().split("x")
    try:
        width, height = (int(side) for side in (sides * 2 if len(sides) == 1 else sides))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give WxH or N, such as 768x512") from None
    if min(width, height) < 8 or width % 8 or height % 8:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; width and height must be multiples of 8")
    return width, height


def _whole(least: int):
    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is below {least}")
        return value

    return convert


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return value


def _print_settings(options: argparse.Namespace) -> int:
    print(markdown(), end="")
    return 0


def _generate(options: argparse.Namespace) -> int:
    options.pool = _each_once(options.pool, options.lora)
    if options.pool and not METHODS[options.method].apart:
        print(told("the method merge has no pool; only the LoRAs of --lora are merged."), file=sys.stderr)
        options.pool = []
    names = [f"{name_of(path)}:{strength:g}" for path, strength, *_ in options.pool]
    values = {"pool": names, "mask": _mask(options.mask)} | {name: getattr(options, name) for name in OPTIONS}
    settings = Settings.from_api(values)
    if not options.lora and not options.pool:
        raise LoratorioError("there is no LoRA of a strength other than 0; give at least one with --lora or --pool.")
    if options.maps and not settings.traits.weighs:
        raise LoratorioError(f"--maps needs the method loratorio; {settings.method} has no weights.")
    if "<lora:" in options.prompt:
        raise LoratorioError("the prompt has a <lora:...> tag; give each LoRA with --lora FILE:STRENGTH.")
    needed = [path for path, *_ in (*options.lora, *options.pool)]
    for path in needed if _is_on_hub(options.model) else [options.model, *needed]:
        if not path.exists():
            raise LoratorioError(f"there is no file {path}.")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise LoratorioError(f"the command line needs {', '.join(missing)}: {INSTALL}")
    return _generate_with(options, settings)


def _is_on_hub(model: Path) -> bool:
    return not model.exists() and bool(ON_HUB.fullmatch(model.as_posix())) and model.suffix != ".safetensors"


def _mask(path: Path | None) -> str:
    """An image file as the setting has it."""
    try:
        return "" if path is None else base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise LoratorioError(f"the mask {path} cannot be read ({os.strerror(error.errno)}).") from error


def _each_once(pool: Sequence[tuple], asked: Sequence[tuple]) -> list[tuple]:
    """The pool's LoRAs, of each file the first mention; none of strength 0 and none that is asked for besides."""
    found = {}
    for lora in pool:
        found.setdefault(lora[0].resolve(), lora)
    taken = {path.resolve() for path, *_ in asked}
    return [lora for file, lora in found.items() if acts(lora[1]) and file not in taken]


def _quiet() -> None:
    """What the libraries say about each file they load would bury the progress bar, and the one line that tells what is
    wrong; errors come back as exceptions.
    """
    logging.basicConfig(format="%(message)s")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.logging.disable_progress_bar()
    for name in LIBRARIES:  # after the imports, which set levels of their own
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _generate_with(options: argparse.Namespace, settings: Settings) -> int:
    _quiet()  # before the imports below, which warn of packages that play no part here
    from lib_loratorio.deltas.memory import is_out_of_memory
    from lib_loratorio.hosts.diffusers import composed

    pipe, sampler, schedule_type = _pipeline(options)
    width, height = options.size or _native_size(pipe)
    guidance = _guidance(pipe, options, width, height)
    seed = random.randrange(2**32) if options.seed < 0 else options.seed
    seeds = [seed + number for number in range(options.batch)]
    try:
        with composed(pipe, [*options.lora, *options.pool], settings) as composition:
            began = time.perf_counter()
            images = _images(pipe, options, width, height, seeds, guidance)
            seconds = time.perf_counter() - began
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise LoratorioError(
            "memory ran out even with one evaluation at a time; use a smaller size or batch."
        ) from error
    fields = {
        "Steps": options.steps,
        "Sampler": sampler,
        "Schedule type": schedule_type,
        "CFG scale": guidance.get("true_cfg_scale", guidance.get("guidance_scale")),
        "Distilled CFG Scale": guidance.get("guidance_scale") if "true_cfg_scale" in guidance else None,
        "Seed": None,
        "Size": f"{width}x{height}",
        "Model": options.model.stem if options.model.is_file() else options.model.resolve().name,
        INFOTEXT: settings.to_infotext(),
        POOL: composition.chosen,
        "Version": f"loratorio-{__version__}",
    }
    for file in _save(options, images, seeds, fields, composition):
        print(file)
    _tell(options, composition, seconds)
    return 0


def _pipeline(options: argparse.Namespace) -> tuple:
    """The pipeline on its device, and the infotext's names of its sampler and schedule type."""
    import torch

    from lib_loratorio.deltas.memory import is_out_of_memory
    from lib_loratorio.hosts.diffusers.models import SCHEDULERS, load_pipeline, use_scheduler

    if options.scheduler not in (None, *SCHEDULERS):
        raise LoratorioError(f"there is no scheduler {options.scheduler!r}; there are {', '.join(SCHEDULERS)}.")
    device = _device(options.device)
    named = options.dtype or (None if device.type == "cuda" else "float32")
    try:
        dtype = getattr(torch, named) if named else None
        pipe = load_pipeline(options.model, options.config, dtype, _is_on_hub(options.model)).to(device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise LoratorioError(f"memory ran out while the model {options.model} was loaded.") from error
    return pipe, *use_scheduler(pipe, options.scheduler)


def _native_size(pipe) -> tuple[int, int]:
    """The size that the model was made for, (width, height) in pixels."""
    native = pipe.unet.config.sample_size if hasattr(pipe, "unet") else pipe.default_sample_size
    height, width = native if isinstance(native, (list, tuple)) else (native, native)
    return width * pipe.vae_scale_factor, height * pipe.vae_scale_factor


def _guidance(pipe, options: argparse.Namespace, width: int, height: int) -> dict[str, float]:
    """The arguments of the pipeline's call that tell its guidance. Raises LoratorioError for options that do not suit
    the model.
    """
    is_flux = hasattr(pipe, "transformer") and hasattr(pipe.transformer.config, "guidance_embeds")
    least = pipe.vae_scale_factor * 2 if hasattr(pipe, "transformer") else 8
    if width % least or height % least:
        raise LoratorioError(f"with this model width and height must be multiples of {least}.")
    if options.distilled_cfg is not None and not (is_flux and pipe.transformer.config.guidance_embeds):
        raise LoratorioError("--distilled-cfg is for models with embedded guidance, such as FLUX.1-dev; leave it away.")
    if not is_flux:
        return {"guidance_scale": 7.0 if options.cfg is None else options.cfg}
    cfg = 1.0 if options.cfg is None else options.cfg
    if options.negative and cfg <= 1:
        raise LoratorioError("FLUX.1 reads a negative prompt only with --cfg above 1.")
    embedded = 3.5 if options.distilled_cfg is None else options.distilled_cfg
    of_model = {"guidance_scale": embedded} if pipe.transformer.config.guidance_embeds else {}
    return {**of_model, "true_cfg_scale": cfg}


def _images(pipe, options: argparse.Namespace, width: int, height: int, seeds: Sequence[int], guidance: dict) -> list:
    import torch

    if guidance.get("true_cfg_scale", 2) > 1:
        guidance = {**guidance, "negative_prompt": [options.negative] * options.batch}
    return pipe(
        prompt=[options.prompt] * options.batch,
        width=width,
        height=height,
        num_inference_steps=options.steps,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        **guidance,
    ).images


def _tell(options: argparse.Namespace, composition, seconds: float) -> None:
    """Prints what was done, for `seconds`."""
    tally = composition.tally
    if composition.chosen:
        print(f"pool: {composition.chosen}")
    rows, called = tally.rows / (options.steps * options.batch), composition.component.replace("unet", "UNet")
    print(f"{seconds:.1f} s, {rows:.3g} {called} evaluations a step and picture")
    if options.maps and composition.maps.mean is None:
        print("maps: no LoRA was weighed, so there are none")
    if composition.settings.verify:
        print(f"verify: {tally.verified}")


def _device(name: str | None):
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LoratorioError(f"the device {name!r} cannot be used ({reason}).") from error
    return device


def _save(options: argparse.Namespace, images: Sequence, seeds: Sequence[int], fields: dict, composition) -> list[Path]:
    """Writes the pictures and, if asked for, their maps; returns the files."""
    from lib_loratorio.page.infotext import infotext, png_info
    from lib_loratorio.page.weight_panel import weight_panel

    tags = " ".join(
        f"<lora:{name_of(path)}:{strength:g}{tag.text}>" + (f" <ltp:{name_of(path)}:{tag.words}>" if tag.words else "")
        for path, strength, tag in options.lora
        if acts(strength)
    )
    written = []
    for number, (image, seed) in enumerate(zip(images, seeds)):
        file = _file(options.out, seed, number, len(images))
        text = infotext(f"{options.prompt} {tags}", options.negative, {**fields, "Seed": seed})
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file, pnginfo=png_info(text))
            written.append(file)
            if options.maps and (maps := composition.maps.mean) is not None:
                patch = composition.settings.patch_size * composition.pipe.vae_scale_factor
                file = file.with_name(f"{file.stem}-maps.png")
                panel = weight_panel(
                    image,
                    maps[:, number],
                    composition.labels,
                    patch,
                    regions=composition.regions,
                    painted=composition.painted,
                )
                panel.save(file, pnginfo=png_info(text))
                written.append(file)
        except OSError as error:
            raise LoratorioError(
                f"{file} cannot be written ({os.strerror(error.errno) if error.errno else error})."
            ) from error
    return written


def _file(out: Path, seed: int, number: int, count: int) -> Path:
    """A .png file as given, numbered where there are several; in a folder a new file named for the seed."""
    if out.suffix.lower() == ".png":
        return out if count == 1 else out.with_name(f"{out.stem}-{number + 1}.png")
    file, again = out / f"{seed}.png", 1
    while file.exists():
        again += 1
        file = out / f"{seed}-{again}.png"
    return file
