"""One pass of a request's sampling, composed, from its begin to its end: what every WebUI has in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from lib_loratorio.deltas.bank import AdapterBank
from lib_loratorio.engine.composer import Composer
from lib_loratorio.engine.planner import Step
from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.webui import masks, neighbours, other_scripts, own_words, places, pool, request
from lib_loratorio.hosts.webui.failures import LeftOutError, tell_left_out
from lib_loratorio.hosts.webui.messages import instead_of_sampling, note
from lib_loratorio.hosts.webui.state import forget_state, state_of
from lib_loratorio.loras.adapter import Adapter
from lib_loratorio.settings import INFOTEXT, POOL, Settings


def prepare(
    p,
    settings: Settings,
    declined: str | None,
    adapters_of: Callable[[Any, Settings], Sequence[Adapter]],
    make_pass: Callable[[Any, Settings, Sequence[Adapter]], Pass],
) -> None:
    """Arranges that the sampling about to start is composed. Raises LoratorioError.

    Args:
        declined: why the host cannot compose this pass, or None.
        adapters_of: gives the adapters of the pass.
        make_pass: the host's `Pass`.
    """
    if not p.is_hr_pass:  # the next batch, whose images do not tell of the one before
        p.extra_generation_params.pop(POOL, None)
    adapters, composed = [], None
    if settings.traits.apart:
        declined = declined or other_scripts.declined(p)
    if not declined:
        adapters, composed = _suiting(p, settings, adapters_of, make_pass)
        pool.tell_refused(p)
    if not adapters:
        of_pool = ", and neither has the pool" if settings.pool else ""
        nothing = f"the prompt has no LoRA of a strength other than 0{of_pool}"
        request.leave_alone(p, f"LoRAtorio did nothing: {declined or nothing}.")
        return
    request.tell_of_block_weights(p, settings, adapters)
    places.tell(p, settings, adapters)
    own_words.tell(p, settings, adapters)
    maps = request.begin_maps(p, settings, adapters, composed and composed.composer.painted)
    if composed:
        composed.composer.maps = maps
        request.suggest_roles(p, adapters)
        other_scripts.tell(p)
        instead_of_sampling(p.sampler, composed.sample)
    else:
        request.tell_what_merge_leaves_out(p, adapters)
    state_of(p).composed = True
    p.extra_generation_params[INFOTEXT] = settings.to_infotext()


def _suiting(
    p,
    settings: Settings,
    adapters_of: Callable[[Any, Settings], Sequence[Adapter]],
    make_pass: Callable[[Any, Settings, Sequence[Adapter]], Pass],
) -> tuple[Sequence[Adapter], Pass | None]:
    """The adapters that suit the model, and the pass that composes them; none of it where the host merges them."""
    without_effect = state_of(p).without_effect
    while True:
        adapters = [adapter for adapter in adapters_of(p, settings) if adapter.key not in without_effect]
        try:
            return adapters, make_pass(p, settings, adapters) if adapters and settings.traits.apart else None
        except LeftOutError as left_out:  # they are not asked for in the next round
            pool.refused(p).extend(adapter.name for adapter in left_out.adapters if adapter.pooled)
            without_effect.update(adapter.key for adapter in left_out.adapters if not adapter.pooled)
            tell_left_out(p, left_out.adapters)


class Pass:
    """One pass of sampling, composed.

    A host's own is the engine's `ModelHost` too, and adds `running`, the bracket of the sampling, and what happens
    within a sampler call.
    """

    composer: Composer

    def __init__(self, p, settings: Settings, adapters: Sequence[Adapter]):
        self.p, self.settings, self.adapters = p, settings, adapters
        self.denoiser = p.sampler.model_wrap_cfg
        self.error: Exception | None = None

    def composer_of(self, bank: AdapterBank) -> Composer:
        tally, window = state_of(self.p).tally, places.window_of(self.p)
        painted = masks.painted(self.p, self.settings, self.adapters)
        return Composer(self.settings, self.adapters, bank, self, tally=tally, window=window, painted=painted)

    def goes_apart(self, extensions: Iterable[str] = ()) -> None:
        """Tells what it costs that each model is evaluated in calls of its own."""
        models = 1 + sum(not adapter.is_global for adapter in self.adapters)
        note(
            self.p,
            f"{neighbours.named(extensions)} acts on what the model is asked for by the number or order of its rows, "
            "so that the model without any LoRA and each LoRA are evaluated in model calls of their own, each with the "
            f"negative prompt: up to {models} calls in place of one. The picture is right, and takes longer.",
        )

    def beside(self, extensions: Set[str]) -> None:
        """At the beginning of the sampling: the extensions that act on the model's rows."""
        if extensions:
            self.composer.apart = True
            self.goes_apart(extensions)

    def sample(self, launch_sampling, steps, func):
        try:
            with self.running():
                return launch_sampling(steps, func)
        except BaseException:
            forget_state(self.p)  # the host tells nobody of the end of a request that fails
            raise

    def running(self) -> AbstractContextManager[None]:
        """Hooks and callbacks in place for the time of the sampling; everything back afterwards."""
        raise NotImplementedError

    @contextmanager
    def keeping_errors(self) -> Iterator[None]:
        """For the host's callbacks: it prints and ignores what they raise, so the next model call raises it again."""
        try:
            yield
        except Exception as error:
            self.error = error
            raise

    def raise_error(self) -> None:
        if isinstance(self.error, LoratorioError):
            raise self.error
        if self.error:
            raise LoratorioError(f"{type(self.error).__name__}: {self.error}") from self.error

    def report(self) -> None:
        """At the end of the sampling: an error of its last step, and what the user wants to know."""
        self.raise_error()
        if self.settings.verify:
            request.report_verification(self.p)
        request.report_pool(self.p, self.composer.chosen)

    def plan(self) -> Step | None:
        """What the model call about to be made is to be; None where the host's own merge applies."""
        calls = max(self.denoiser.total_steps, 1)
        made = self.denoiser.step
        return self.composer.plan(made / calls, made * self.denoiser.steps // calls)

    def leave_to_refiner(self) -> None:
        note(
            self.p,
            "LoRAtorio stops where the refiner takes over; from there on the WebUI treats LoRAs as it does by itself.",
        )
        self.denoiser = None
