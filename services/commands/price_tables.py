"""How prices and catalogs are shown to people."""

from collections.abc import Mapping, Sequence
from typing import Any

from services.commands.output import console, dollars, moment, print_table, text


def rates_text(usd: Mapping[str, str]) -> str:
    """Rates in one line: ``input $2.50, output $10.00``."""
    return ", ".join(f"{name.replace('_', ' ')} {dollars(amount)}" for name, amount in usd.items()) or "nothing"


def show_prices(answer: Any) -> None:
    """Prices, one model a line."""
    print_table(
        ("vendor", "model", "input>", "output>", "others", "tiers", "from"),
        (
            (
                row["vendor"],
                row["model"],
                dollars(row["usd"].get("input")),
                dollars(row["usd"].get("output")),
                rates_text({name: rate for name, rate in row["usd"].items() if name not in ("input", "output")})
                if row["usd"].keys() - {"input", "output"}
                else "-",
                ", ".join(f"> {tier['above_input_tokens']:,}" for tier in row["tiers"]) or "-",
                row["source"],
            )
            for row in answer["prices"]
        ),
        "No model of that name has a price.",
    )
    _say_unit()


def show_detail(answer: Any) -> None:
    """All that is known of one model's price."""
    out = console()
    found = f" (asked for: {answer['requested']}, {answer['match']})" if answer["match"] != "exact" else ""
    out.print(f"{answer['vendor']} {answer['model']}{found}", style="bold", markup=False, soft_wrap=True)
    if answer["prices_of"] == "shipped":
        source = f"the catalog that this command ships ({answer['catalog_version']}); no Farthing runs here"
    elif answer["source"] == "override":
        source = f"an own price of the org, on top of the catalog ({answer['catalog_version']})"
    else:
        source = f"the catalog in use ({answer['catalog_version']}) of {answer['prices_of']}"
    out.print(f"By {source}.", soft_wrap=True)
    rows = [(_since(each), _when({}), rates, usd) for each in answer["periods"] for rates, usd in _lines(each)]
    rows += [
        (_since(each), _when(each["when"]), rates, usd) for each in answer["variants"] for rates, usd in _lines(each)
    ]
    print_table(("from", "of calls", "with input tokens", "US dollars a million"), rows, "It has no prices.")
    limits = {"Longest answer": answer["max_output_tokens"], "Context window": answer["context_window"]}
    for name, tokens in limits.items():
        if tokens is not None:
            out.print(f"{name}: {tokens:,} tokens.")
    if answer["aliases"]:
        out.print(f"Also called: {', '.join(answer['aliases'])}.", markup=False, soft_wrap=True)
    if answer["also_priced_by"]:
        out.print(f"Prices of other vendors: --vendor {' | '.join(answer['also_priced_by'])}", soft_wrap=True)
    if "audio_duration" in answer["usd"]:
        out.print("Audio duration is priced by the hour.")


def show_catalogs(answer: Any) -> None:
    """Every proposal, newest first."""
    print_table(
        ("catalog", "state", "proposed", "by", "decided", "by", "reason"),
        (
            (
                each["version"],
                "in use" if each["in_use"] and each["state"] == "accepted" else each["state"],
                moment(each["proposed_at"]),
                each["proposed_by"],
                moment(each["decided_at"]),
                text(each["decided_by"]),
                text(each["reason"]),
            )
            for each in answer["proposals"]
        ),
        f"No catalog was proposed; {answer['in_use']} is in use.",
    )


def show_diff(answer: Any) -> None:
    """What changes, one model a line."""
    console().print(
        f"From {answer['old_version']} to {answer['new_version']}: {answer['added']} added, "
        f"{answer['removed']} removed, {answer['changed']} changed.",
        soft_wrap=True,
    )
    if not answer["models"]:
        return
    print_table(
        ("", "vendor", "model", "before", "after", "changed"),
        (
            (
                {"added": "+", "removed": "-", "changed": "~"}[each["kind"]],
                each["vendor"],
                each["model"],
                _latest(each["old"]),
                _latest(each["new"]),
                ", ".join(each["fields"]) or "-",
            )
            for each in answer["models"]
        ),
        "",
    )
    _say_unit()


def show_overrides(answer: Any) -> None:
    """Own prices."""
    print_table(
        ("vendor", "model", "from", "price", "set", "by"),
        (
            (
                each["vendor"],
                each["model"],
                each["from"],
                "withdrawn" if each["period"] is None else rates_text(each["period"]["usd"]),
                moment(each["created_at"]),
                each["created_by"],
            )
            for each in answer["overrides"]
        ),
        "The org has no prices of its own.",
    )


def _lines(each: Any) -> Sequence[tuple[str, str]]:
    return [
        ("any" if not each["tiers"] else "others", rates_text(each["usd"]) if each["usd"] else "as calls of no kind"),
        *((f"above {tier['above_input_tokens']:,}", rates_text(tier["usd"])) for tier in each["tiers"]),
    ]


def _since(each: Any) -> str:
    day = each["from"] or "ever"
    return f"{day}, {' to '.join(each['daily'])} UTC" if each.get("daily") else day


def _when(when: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in when.items()) or "any kind"


def _latest(entry: Any) -> str:
    return "-" if entry is None else rates_text(entry["prices"][-1]["usd"])


def _say_unit() -> None:
    console().print("US dollars a million tokens (audio duration: an hour).", style="dim")
