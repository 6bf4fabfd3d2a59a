"""What a job has used and cost, line by line."""

from collections.abc import Mapping, Sequence

from services.core.estimate import Demand, fill_in_usage
from services.core.events import ComponentCost, UsageSource
from services.core.jobs import Job
from services.core.money import divide_half_even
from services.core.pricing import Context, Price, price_usage, rates_for, unpriced_counts
from services.core.usage.reading import Reading


class Tally:
    """Adds up the answers of a job's lines. Each is priced at its own model's rates, in its own context and tier.

    The whole is rounded once a component and rate, half-even (PR-4): tokens of many lines are one quantity, as on the
    vendor's invoice.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._quantities: dict[tuple[str, int, int], int] = {}
        self._unpriced: list[str] = []
        self._is_estimated = False
        self._left = [[each.input_tokens, each.output_tokens] for each in job.parts]
        self._context: dict[str, str] | None = None
        self.usage: dict[str, int] = {}
        self.lines = 0

    @property
    def source(self) -> UsageSource:
        """Where the usage comes from; one line that had to be estimated makes an estimate of the whole."""
        if not self.lines:
            return "none"
        return "estimated" if self._is_estimated else "reported"

    @property
    def context(self) -> Context:
        """What picked the rates besides the model, as far as it is the same for all lines."""
        return self.job.context if self._context is None else self._context

    @property
    def unpriced(self) -> tuple[str, ...]:
        """Counts that no price covers."""
        return tuple(self._unpriced)

    def add(self, reading: Reading, needed: Sequence[str]) -> None:
        """Adds a line that is charged; what it had to report (`needed`) and did not is estimated."""
        context = {**reading.context, **self.job.context}
        candidates = []
        for place in self._places_of(reading.model):
            part, left = self.job.parts[place], self._left[place]
            demand = Demand(
                min(part.line_input_tokens, left[0]), min(part.line_output_tokens, left[1]), counts=part.counts
            )
            usage, source = fill_in_usage(reading.usage, needed, reading.text_bytes, demand)
            candidates.append((place, usage, source, price_usage(part.price, usage, context)))
        place, usage, source, costs = max(candidates, key=lambda each: sum(cost.cost_nano for cost in each[3]))
        self._is_estimated |= source == "estimated"
        self._take(place, usage)
        self._add(self.job.parts[place].price, usage, context, costs)

    def add_unread(self) -> None:
        """Adds a line that can't be read: it may cost what the dearest of the job's lines can.

        Estimates never go past what was held for them, however many such lines there are.
        """
        context, parts = self.job.context, self.job.parts
        candidates = []
        for place, part in enumerate(parts):
            left = self._left[place]
            usage = {
                "input_tokens": min(part.line_input_tokens, left[0]),
                "output_tokens": min(part.line_output_tokens, left[1]),
            }
            candidates.append((place, usage, price_usage(part.price, usage, context)))
        place, usage, costs = max(candidates, key=lambda each: sum(cost.cost_nano for cost in each[2]))
        self._is_estimated = True
        self._take(place, usage)
        self._add(parts[place].price, usage, context, costs)

    def add_bound(self) -> None:
        """Adds all that the job can use: an unknown cost is never zero."""
        context = self.job.context
        for part in self.job.parts:
            usage = {"input_tokens": part.input_tokens, "output_tokens": part.output_tokens, **part.counts}
            # No line is as long as all of them together. The longest may be in a dearer tier, and the others not.
            sizes = (0, part.line_input_tokens)
            prices = [Price(rates_for(part.price, size, context), minimums=part.price.minimums) for size in sizes]
            ways = [(price, price_usage(price, usage)) for price in prices]
            price, costs = max(ways, key=lambda way: _within(way[1], part.bound_nano))
            self._add(price, usage, context, costs)
        self._is_estimated = True

    def components(self) -> tuple[ComponentCost, ...]:
        """The cost, a component and rate."""
        return tuple(
            ComponentCost(name, quantity, rate, divide_half_even(quantity * rate, per), per)
            for (name, rate, per), quantity in self._quantities.items()
        )

    def _add(self, price: Price, usage: Mapping[str, int], context: Context, costs: Sequence[ComponentCost]) -> None:
        self.lines += 1
        for name, count in usage.items():
            self.usage[name] = self.usage.get(name, 0) + count
        for cost in costs:
            key = cost.component, cost.price_nano, cost.per
            self._quantities[key] = self._quantities.get(key, 0) + cost.quantity
        kept = context.items() if self._context is None else self._context.items() & context.items()
        self._context = dict(kept)
        self._unpriced += [name for name in unpriced_counts(price, usage, context) if name not in self._unpriced]

    def _take(self, place: int, usage: Mapping[str, int]) -> None:
        left = self._left[place]
        left[0] = max(left[0] - usage.get("input_tokens", 0), 0)
        left[1] = max(left[1] - usage.get("output_tokens", 0), 0)

    def _places_of(self, model: str | None) -> Sequence[int]:
        """The part that an answer belongs to: all of them, the dearest to be taken, when its model does not say.

        Vendors answer with a dated name of the model that was asked for.
        """
        names = [each.model for each in self.job.parts]
        if len(names) == 1 or model is None:
            return range(len(names))
        if model in names:
            return [names.index(model)]
        dated = [place for place, name in enumerate(names) if model.startswith(name.removesuffix("-latest"))]
        return [max(dated, key=lambda place: len(names[place]))] if dated else range(len(names))


def _within(costs: Sequence[ComponentCost], bound_nano: int) -> int:
    """The cost; what is above the bound counts for nothing."""
    cost_nano = sum(each.cost_nano for each in costs)
    return cost_nano if cost_nano <= bound_nano else -1
