"""Begin and end of a request, and what its user is told about it."""

from __future__ import annotations

from collections.abc import Sequence

from PIL.Image import Image

from lib_loratorio.engine.painted import Painted
from lib_loratorio.engine.weight_maps import WeightMaps
from lib_loratorio.hosts.webui import block_weights, masks
from lib_loratorio.hosts.webui.maps import SHARES, Panels
from lib_loratorio.hosts.webui.messages import NOTE, note
from lib_loratorio.hosts.webui.places import window_of
from lib_loratorio.hosts.webui.state import forget_state, is_copy, known_state, state_of
from lib_loratorio.hosts.webui.text import forget_conditions
from lib_loratorio.loras.adapter import Adapter, numbered_names
from lib_loratorio.loras.helpers import role_advice
from lib_loratorio.loras.region import seen_boxes
from lib_loratorio.settings import INFOTEXT, POOL, Settings

VERIFY = "LoRAtorio verify"


def start(p) -> bool:
    """A request begins: nothing is left of an earlier one that a script may have made with the same `p`.

    False where it is a copy of one that is not over, with which an extension has all scripts prepare themselves anew
    (ADetailer does, after its own passes): its infotext is that one's, and stays.
    """
    if is_copy(p):
        return False
    forget_state(p)
    for key in (NOTE, VERIFY, SHARES, POOL):
        p.extra_generation_params.pop(key, None)
    forget_conditions()  # a request that failed never came to `finish`
    return True


def finish(p, processed) -> None:
    """A request is over: its memory is given back, as are text conditions where the host keeps none either."""
    state = known_state(p)
    if state and state.panels:
        state.panels.hand_over(p, processed)
    if state and state.mask and processed.infotexts:
        masks.save(p, state.mask, processed.infotexts[0])
    forget_state(p)
    forget_conditions()


def begin_maps(p, settings: Settings, adapters: Sequence[Adapter], painted: Painted | None = None) -> WeightMaps | None:
    """The maps of the pass about to begin, which is composed of these LoRAs; None where none are wanted.

    `painted` are the places that are painted for them, as the pass shows them.
    """
    state = state_of(p)
    if not settings.maps:
        return None
    if not settings.traits.weighs:
        note(
            p,
            f"there are no weight maps with the method {settings.method}, which does not weigh LoRAs by place.",
        )
        return None
    state.panels = state.panels or Panels()
    competing = [adapter for adapter in adapters if adapter.competes]
    regions = [seen_boxes(adapter.tag.region, window_of(p)) for adapter in competing]
    return state.panels.begin(numbered_names(competing), settings.patch_size, regions, painted)


def image_done(p, image: Image) -> None:
    """The host has made the batch's next image."""
    state = known_state(p)
    if state and state.panels:
        try:
            state.panels.add_image(image)
        except Exception as error:
            note(
                p,
                f"the weight maps could not be drawn: {type(error).__name__}: {error}. Please report "
                "this with the console's output.",
            )
            raise


def leave_alone(p, message: str) -> None:
    """Tells why the pass about to start is the host's ordinary one."""
    if not state_of(p).composed:
        p.extra_generation_params.pop(INFOTEXT, None)
    passes = "the hires pass" if p.is_hr_pass else "the first pass" if getattr(p, "enable_hr", False) else "the picture"
    note(p, f"{message} This makes {passes} the WebUI's ordinary one.")


def tell_what_merge_leaves_out(p, adapters: Sequence[Adapter]) -> None:
    """Tells what of the request has no effect where the sampling is the WebUI's own, with the prompt's LoRAs."""
    if any(adapter.pooled for adapter in adapters):
        note(p, "the method merge has no pool; only the prompt's LoRAs are merged.")


def tell_of_block_weights(p, settings: Settings, adapters: Sequence[Adapter]) -> None:
    """Tells where what tags have of LoRA Block Weight has no effect."""
    if settings.traits.apart and (names := [adapter.name for adapter in adapters if adapter.tag.elements]):
        note(p, f"lbwe in the tag of {', '.join(names)} has no effect: of block weights LoRAtorio knows lbw only.")
    weighted = any(adapter.tag.blocks for adapter in adapters)
    if block_weights.acts(p) or not (weighted or any(adapter.tag.has_steps for adapter in adapters)):
        return
    if not settings.traits.apart:
        where = "with the method merge"
    elif (settings.start, settings.end) != (0, 1):
        where = "outside of Start and End"
    elif weighted and settings.text_encoder != "own":
        where = "on how the prompt is read"
    else:
        return
    note(
        p,
        f"lbw, start, stop and step in tags have no effect {where}, which is the WebUI's own work: there it takes the "
        "extension LoRA Block Weight, which is not active.",
    )


def suggest_roles(p, adapters: Sequence[Adapter]) -> None:
    """Tells of LoRAs that compete for patches though they are meant for the whole image."""
    if advice := role_advice(adapters):
        note(p, advice)


def report_verification(p) -> None:
    """Tells what verification has found so far, in place of what was told before."""
    text = state_of(p).tally.verified
    p.extra_generation_params[VERIFY] = text
    for comment in [comment for comment in p.comments if comment.startswith(VERIFY)]:
        del p.comments[comment]
    p.comment(f"{VERIFY}: {text}")


def report_pool(p, chosen: str) -> None:
    """Tells which LoRAs of a pool were chosen in this pass, behind what is told of a batch's first pass."""
    if chosen:
        p.extra_generation_params[POOL] = "; ".join(filter(None, [p.extra_generation_params.get(POOL), chosen]))
