"""A stream held for less than it can cost: followed as it comes, and extended before it has used that up (BU-6).

All is counted in output tokens, because a hold has the rest of the call in it from the beginning. Of a hold of steps
everything is taken at the most it can be, so that its budgets' caps hold; of a calibrated one at what it likely is.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Final

from services.core.estimate import TOKENS_PER_SECOND, most_nano, most_tokens
from services.core.pricing import price_usage
from services.core.usage.reading import Reading
from services.gateway.admit import AdmittedCall
from services.gateway.meter import Meter
from services.gateway.refusal import RefusedError
from services.gateway.sizing import STEP_TOKENS, step_tokens

# Even a slow model that writes leaves no such gaps; in one that lasts longer it may be thinking.
QUIET_NS: Final = 2_000_000_000
# How many bytes a token of likely output has: at least one, and in English about four.
_LIKELY_BYTES: Final = 4
_LEAST_LIKELY_STEP: Final = 256
# Less than this part of a step is not worth a round trip, an event and, a moment later, the next.
_LEAST_PART: Final = 16
_NEVER: Final = 2**63
_NOTHING_READ: Final = Reading({}, 0, complete=False)

Resize = Callable[[int], Awaitable[None]]


class NotExtendedError(Exception):
    """A hold could not be changed. `refusal` is what the client is told, `room_nano` what there would be room for.

    `is_gone`: there is no such hold any more.
    """

    def __init__(self, refusal: RefusedError, room_nano: int | None = None, *, is_gone: bool = False) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
        self.room_nano = room_nano
        self.is_gone = is_gone


class CutOffError(Exception):
    """A stream has used up what is held for it, and no more can be: it ends here. `refusal` says why."""

    def __init__(self, refusal: RefusedError) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def grows(call: AdmittedCall) -> bool:
    """Whether a call's hold is extended as its answer comes: only a stream tells how far it is."""
    if call.estimate_mode == "stepped":
        return True
    return call.estimate_mode == "calibrated" and call.request.stream and call.held_nano < call.bound.amount_nano


def interrupt(scope: asyncio.Timeout) -> None:
    """Ends the scope's time now, unless it is over already."""
    if not scope.expired():
        scope.reschedule(asyncio.get_running_loop().time())


class GrowingHold:
    """The hold of one stream, from its being sent until its end.

    Once the answer has begun, `follow` its meter; for each chunk ask `is_covered`, and if not `wait`, before it goes
    on, and tell by `begin_read` that the next is waited for. `tick` follows the stream by the clock meanwhile.
    `resize` makes the hold so large, or raises `NotExtendedError`.
    """

    def __init__(self, call: AdmittedCall, resize: Resize) -> None:
        self.refusal: RefusedError | None = None
        self._call = call
        self._resize = resize
        self.is_strict = call.estimate_mode == "stepped"
        self._bytes_per_token = 1 if self.is_strict else _LIKELY_BYTES
        self._most = call.bound.output_tokens
        self._covered = covered_tokens(call) if self.is_strict else 0
        self._step = step_tokens(call.request.demand)
        self._alarm = 0
        self._meter: Meter | None = None
        self._reading = _NOTHING_READ
        self._task: asyncio.Task[None] | None = None
        self._interrupt: Callable[[], None] | None = None
        self._is_reading = True
        self._has_ended = self._has_failed = False
        # What is used for certain, and from which byte of text and nanosecond of silence on more is added to it.
        self._base = self._base_bytes = self._base_ns = 0
        self._reported: int | None = None
        self._looked_bytes = self._looked_ns = 0
        self._has_text = self._is_complete = False
        self._seen_bytes = self._own_bytes = self._silent_ns = self._quiet_ns = self._read_from_ns = 0

    # ---- for whoever delivers the answer ----------------------------------------------------------------------------

    def follow(self, meter: Meter) -> None:
        """Counts from now on what the meter sees."""
        self._meter = meter
        self._is_reading = False

    def begin_read(self) -> None:
        """The next chunk is waited for. Raises `CutOffError` when the stream is over, while its client was slow say."""
        if self.refusal is not None:
            raise CutOffError(self.refusal)
        self._is_reading = True
        self._read_from_ns = time.perf_counter_ns()

    def is_covered(self) -> bool:
        """Whether what has come by now is within the hold. When it nears the end of that, an extension is begun."""
        now_ns = time.perf_counter_ns()
        self._take(now_ns)
        used = self._used(now_ns)
        return used < self._alarm or self._look(used) <= self._covered

    async def wait(self) -> None:
        """Waits until what has come is within the hold. Raises `CutOffError` when there is no room for it."""
        while (used := self._look(self._used(time.perf_counter_ns()))) > self._covered:
            if self.refusal is not None:
                raise CutOffError(self.refusal)
            task = self._task or self._start(used)
            await asyncio.wait({task})  # it goes on when this is cancelled
            task.result()

    async def cover_all(self) -> None:
        """Holds all that the call can cost: for an answer that is no stream after all. Raises `CutOffError`."""
        self._base = self._most
        await self.wait()

    @contextlib.contextmanager
    def interrupted_by(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """Calls `interrupt` when the hold is used up while the vendor is waited for."""
        self._interrupt = interrupt
        try:
            yield
        finally:
            self._interrupt = None

    @contextlib.asynccontextmanager
    async def limiting(self) -> AsyncIterator[None]:
        """Cancels what is awaited inside when the hold is used up. Raises `CutOffError` then."""
        try:
            async with asyncio.timeout(None) as scope:
                with self.interrupted_by(lambda: interrupt(scope)):
                    yield
        except TimeoutError:
            if self.refusal is None:
                raise
            raise CutOffError(self.refusal) from None

    def end(self) -> None:
        """Follows the stream no longer."""
        self._has_ended = True

    def tick(self, now_ns: int) -> None:
        """Follows the stream by the clock."""
        if self._has_ended or self.refusal is not None:
            return
        used = self._used(now_ns)
        if used >= self._alarm and self._look(used) > self._covered and self._task is None:
            self._start(used)

    # ---- what is used -----------------------------------------------------------------------------------------------

    def _take(self, now_ns: int) -> None:
        """Takes note of a chunk: of the silence before it."""
        assert self._meter is not None
        self._is_reading = False
        self._seen_bytes, own_bytes = self._meter.progress()
        if not self._has_text:
            if own_bytes:
                self._has_text = True
                self._own_bytes = own_bytes
                self._silent_ns = now_ns - self._sent_ns(now_ns)
            return
        self._quiet_ns += now_ns - self._read_from_ns
        if own_bytes > self._own_bytes:
            self._own_bytes = own_bytes
            if self._quiet_ns > QUIET_NS:
                self._silent_ns += self._quiet_ns
            self._quiet_ns = 0

    def _used(self, now_ns: int) -> int:
        """The output tokens that there can be by now, or likely are."""
        used = self._base - (self._base_bytes - self._seen_bytes) // self._bytes_per_token
        if self.is_strict and not self._is_complete:
            used -= (self._base_ns - self._silence(now_ns)) * TOKENS_PER_SECOND // 1_000_000_000
        return used

    def _silence(self, now_ns: int) -> int:
        """How long, in nanoseconds, the model may have written what can't be seen."""
        if not self._has_text:
            return now_ns - self._sent_ns(now_ns)
        quiet_ns = self._quiet_ns + (now_ns - self._read_from_ns if self._is_reading else 0)
        return self._silent_ns + (quiet_ns if quiet_ns > QUIET_NS else 0)

    def _sent_ns(self, now_ns: int) -> int:
        return self._call.timing.tried_ns or now_ns

    def _look(self, used: int) -> int:
        """The same as `used`, with what the stream itself says; and sees to it that more is held in time."""
        if self._covered >= self._most:
            self._alarm = _NEVER
            return 0
        if self._meter is not None:
            used = self._by_report(used, self._meter, time.perf_counter_ns())
        if not self.is_strict:
            self._covered = self._within(self._call.held_nano)
        margin = min(self._step // 2, self._covered // (1 if self.is_strict else 4))
        if used >= self._covered - margin and self._task is None and not self._has_failed and not self._is_complete:
            self._start(used)
        self._alarm = self._covered + 1 if self._has_failed else self._covered - margin
        if self._reported is not None and not self._is_complete:
            self._alarm = 0  # a stream that reports as it goes is best believed at once, each time
        elif not self.is_strict:
            self._alarm = min(self._alarm, used + STEP_TOKENS // 4)
        return used

    def _by_report(self, used: int, meter: Meter, now_ns: int) -> int:
        """The tokens used by the stream's own report, which is newer than the last look, and what came since then."""
        self._reading = reading = meter.so_far()
        reported = reading.usage.get("output_tokens")
        silent_ns = self._silence(now_ns)
        if reported is not None and reading.complete:
            self._is_complete = True
            self._base, self._base_bytes = reported, self._seen_bytes
            return reported
        if reported is not None and reported != self._reported:
            before = self._base, self._base_bytes, self._base_ns
            self._base, self._base_bytes, self._base_ns = reported, self._looked_bytes, self._looked_ns
            since = self._used(now_ns)
            if since > used >= reported:
                self._base, self._base_bytes, self._base_ns = before
            else:
                used = since
        self._reported, self._looked_bytes, self._looked_ns = reported, self._seen_bytes, silent_ns
        return used

    # ---- what is held -----------------------------------------------------------------------------------------------

    def _start(self, used: int) -> asyncio.Task[None]:
        self._task = asyncio.create_task(self._extend(used))
        return self._task

    async def _extend(self, used: int) -> None:
        """Holds a step more; or, where there is no room for a step, what there is room for."""
        target = min(self._most, max(self._covered, used) + self._next_step())
        try:
            try:
                await self._resize(self._amount(target))
            except NotExtendedError as error:
                target = 0 if error.room_nano is None else self._within(error.room_nano)
                if target < max(self._covered, used) + self._step // _LEAST_PART:
                    raise
                await self._resize(self._amount(target))
            self._covered, self._has_failed = target, False
            self._alarm = 0
        except NotExtendedError as error:
            self._fail(error.refusal)
        finally:
            self._task = None

    def _fail(self, refusal: RefusedError) -> None:
        """Goes on with what is held, and asks once more at its end; at the end, that was the last word."""
        self._has_failed = True
        self._alarm = 0
        if self._has_ended or self._used(time.perf_counter_ns()) <= self._covered:
            return
        self.refusal = refusal
        if self._interrupt is not None and self._is_reading:
            self._interrupt()

    def _next_step(self) -> int:
        if self.is_strict:
            return self._step
        # A calibrated hold is close to what the call will cost; a whole step could be many times that.
        return min(self._step, max(_LEAST_LIKELY_STEP, self._covered // 2))

    def _amount(self, tokens: int) -> int:
        """What to hold, in nano-dollars, for so many output tokens."""
        bound_nano = self._call.bound.amount_nano
        return bound_nano if tokens >= self._most else min(bound_nano, self._cost(tokens))

    def _cost(self, tokens: int) -> int:
        call = self._call
        if self.is_strict:
            return most_nano(call.price, call.request.demand, tokens)
        usage = {**call.request.counted, **self._reading.usage, "output_tokens": tokens}
        context = {**call.request.context, **self._reading.context}
        return sum(each.cost_nano for each in price_usage(call.price, usage, context))

    def _within(self, amount_nano: int) -> int:
        """The output tokens that so much is enough for."""
        call = self._call
        if self.is_strict:
            return most_tokens(call.price, call.request.demand, call.bound, amount_nano)
        base_nano, whole_nano = self._cost(0), self._cost(self._most)
        if amount_nano <= base_nano:
            return 0 if amount_nano < whole_nano else self._most
        return min(self._most, (amount_nano - base_nano) * self._most // max(1, whole_nano - base_nano))


def covered_tokens(call: AdmittedCall) -> int:
    """The output that a stepped hold is surely enough for."""
    return most_tokens(call.price, call.request.demand, call.bound, call.held_nano)
