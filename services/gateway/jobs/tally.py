"""What a job has used and cost, line by line."""

from collections.abc import Mapping, Sequence

from services.core.estimate import Demand, fill_in_usage
from services.core.events import ComponentCost, UsageSource
from services.core.jobs import Job, JobPart
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
        self._left = [_Left(each) for each in job.parts]
        self._context: dict[str, str] | None = None
        self.usage: dict[str, int] = {}
        self.lines = 0

    @property
    def source(self) -> UsageSource:
        """Where the usage comes from; one line that had to be estimated makes an estimate of the whole."""
        if not self.lines:
            return "none"
        return "estimated" if self._is_estimated or any(each.is_guessed for each in self._left) else "reported"

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
        context = {**reading.brief_context, **self.job.context}
        candidates = []
        for place in self._places_of(reading.model):
            left, price = self._left[place], self.job.parts[place].price
            reported = {**left.counted(), **reading.usage}
            usage, source = fill_in_usage(reported, needed, reading.text_bytes, left.demand())
            candidates.append((place, usage, source, price_usage(price, usage, context)))
        place, usage, source, costs = max(candidates, key=lambda each: sum(cost.cost_nano for cost in each[3]))
        self._is_estimated |= source == "estimated"
        self._left[place].take(usage)
        self._add(self.job.parts[place].price, usage, context, costs)

    def add_unread(self) -> None:
        """Adds a line that can't be read: it may cost what the dearest of the job's lines can.

        Estimates never go past what was held for them, however many such lines there are.
        """
        context, parts = self.job.context, self.job.parts
        candidates = []
        for place, part in enumerate(parts):
            usage = self._left[place].most()
            candidates.append((place, usage, price_usage(part.price, usage, context)))
        place, usage, costs = max(candidates, key=lambda each: sum(cost.cost_nano for cost in each[2]))
        self._is_estimated = True
        self._left[place].take(usage)
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


class _Left:
    """What a part's lines can still use, and are still charged for by their requests, as its lines come in."""

    def __init__(self, part: JobPart) -> None:
        self._part = part
        self._lines = 0
        self._most_of_line = {
            **part.line_counts, "input_tokens": part.line_input_tokens, "output_tokens": part.line_output_tokens
        }  # fmt: skip
        self._most = {**part.counts, "input_tokens": part.input_tokens, "output_tokens": part.output_tokens}
        self._counted = dict(part.counted)

    @property
    def is_guessed(self) -> bool:
        """Whether only some of the lines came in, and nobody knows which: their requests are charged unlike."""
        part = self._part
        alike = all(count == part.lines * part.line_counted[name] for name, count in part.counted.items())
        return not alike and 0 < self._lines < part.lines

    def most(self) -> dict[str, int]:
        """The most that one more line can use."""
        return {name: min(count, self._most[name]) for name, count in self._most_of_line.items()}

    def demand(self) -> Demand:
        """The same, of a line that has come without some of its counts."""
        counts = self.most()
        return Demand(counts.pop("input_tokens"), counts.pop("output_tokens"), counts=counts)

    def counted(self) -> dict[str, int]:
        """What the request of one more line is charged for: of all lines, no more than what all requests are."""
        left = {name: min(count, self._counted[name]) for name, count in self._part.line_counted.items()}
        return {name: count for name, count in left.items() if count}

    def take(self, usage: Mapping[str, int]) -> None:
        """Takes a line's use."""
        self._lines += 1
        for left in (self._most, self._counted):
            for name in left:
                left[name] = max(left[name] - usage.get(name, 0), 0)


def _within(costs: Sequence[ComponentCost], bound_nano: int) -> int:
    """The cost; what is above the bound counts for nothing."""
    cost_nano = sum(each.cost_nano for each in costs)
    return cost_nano if cost_nano <= bound_nano else -1
