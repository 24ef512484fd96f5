"""A request's passes, from its begin to its end, and what every WebUI's session of one pass has in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from lib_loratorio.engine.methods import Composed
from lib_loratorio.engine.planner import Planner, Step
from lib_loratorio.engine.sampler_call import SamplerCall
from lib_loratorio.errors import LoratorioError
from lib_loratorio.hosts.webui import pool, request
from lib_loratorio.hosts.webui.messages import instead_of_sampling, note
from lib_loratorio.hosts.webui.text import forget_conditions
from lib_loratorio.settings import INFOTEXT, POOL, Settings


def start(p) -> None:
    """A request begins."""
    request.start(p)
    forget_conditions()  # a request that failed never came to `finish`


def finish(p, processed) -> None:
    """A request is over: its memory is given back, as are text conditions where the host keeps none either."""
    request.hand_over(p, processed)
    p.loratorio = None
    forget_conditions()


def prepare(
    p,
    settings: Settings,
    declined: str | None,
    adapters_of: Callable[[Any, Settings], Sequence],
    session: type[Session],
) -> None:
    """Arranges that the sampling about to start is composed, by a `session` of the host. Raises LoratorioError and
    SettingsError.
    """
    if not p.is_hr_pass:  # the next batch, whose pictures do not tell of the one before
        p.extra_generation_params.pop(POOL, None)
    adapters, composed = [], None
    if not declined:
        adapters, composed = _suiting(p, settings, adapters_of, session)
        pool.tell_refused(p)
    if not adapters:
        nothing = (
            f"the prompt has no LoRA of a strength other than 0{', and neither has the pool' if settings.pool else ''}"
        )
        return request.leave_alone(p, f"LoRAtorio did nothing: {declined or nothing}.")
    if composed:
        instead_of_sampling(p.sampler, composed.sample)
    else:
        request.tell_what_merge_leaves_out(p, adapters)
    request.begin_maps(p, settings, adapters)
    p.loratorio.composed = True
    p.extra_generation_params[INFOTEXT] = settings.to_infotext()
    return None


def _suiting(
    p, settings: Settings, adapters_of: Callable[[Any, Settings], Sequence], session: type[Session]
) -> tuple[Sequence, Session | None]:
    """The adapters that suit the model, and the session that composes them; none where there are none, or the host
    merges them.
    """
    while True:
        adapters = adapters_of(p, settings)
        try:
            return adapters, session(p, settings, adapters) if adapters and settings.method != "merge" else None
        except request.MisfitsError as misfits:  # no more of the pool are asked for in the next round
            pool.refused(p).extend(misfits.names)


class Session:
    """One pass of sampling, composed. A host adds `running`, the bracket, and what happens in a sampler call."""

    def __init__(self, p, settings: Settings, adapters: Sequence):
        self.p, self.settings, self.adapters = p, settings, adapters
        self.verified = p.loratorio.verified
        self.course = Planner(settings, adapters)
        self.denoiser = p.sampler.model_wrap_cfg
        self.error: Exception | None = None

    def sample(self, launch_sampling, steps, func):
        with self.running():
            return launch_sampling(steps, func)

    def running(self) -> AbstractContextManager[None]:
        """Hooks and callbacks in place for the time of the sampling; everything back afterwards."""
        raise NotImplementedError

    @contextmanager
    def kept(self) -> Iterator[None]:
        """For the host's callbacks: it prints and ignores what they raise, so the next model call raises it again."""
        try:
            yield
        except Exception as error:
            self.error = error
            raise

    def raise_error(self) -> None:
        if self.error:
            raise LoratorioError(f"{type(self.error).__name__}: {self.error}") from self.error

    def report(self) -> None:
        """At the end of the sampling: an error of its last step, and what verification has found."""
        self.raise_error()
        if self.settings.verify:
            self.verified.report(self.p)
        request.report_pool(self.p, [adapter.name for adapter in self.adapters], self.course.scout)

    def step(self) -> Step:
        """What the model call about to be made is to be."""
        return self.course.step(*request.step_now(self.denoiser))

    def count(self, call: SamplerCall, composed: Composed) -> None:
        """A sampler call has been composed."""
        self.verified.calls += 1
        self.course.learn(call.adapters, composed)
        if self.p.loratorio.panels:
            self.p.loratorio.panels.add(composed, call.adapters, call.picture_of)

    def leave_to_refiner(self) -> None:
        note(
            self.p,
            "LoRAtorio stops where the refiner takes over; from there on the WebUI's ordinary merged LoRAs apply.",
        )
        self.denoiser = None
