"""How results are shown: a table in the terminal, and one HTML page that needs nothing else."""

import base64
from collections.abc import Mapping, Sequence
from html import escape

from rich.box import MINIMAL
from rich.table import Table

from spiritrt.bench.duplex.figures import counted

COLUMNS = (
    "sessions", "first audio, p50/p95/p99/max ms", "silence, p50/p99/max", "resume, p50/p99/max", "count of each",
    "missed", "lead, min/p50 ms", "jitter, p99", "wasted", "busy", "CPU", "held",
)  # fmt: skip
COUNTED = ("end_of_turn_to_audio_ms", "barge_in_to_silence_ms", "resume_ms")  # a p99 of four is their maximum
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.about { color: #555; margin-top: .2rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.tile { border: 1px solid #d5d5d5; border-radius: .5rem; padding: .6rem 1rem; min-width: 9rem; }
.tile b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; } .tile span { color: #555; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e5e5e5; white-space: nowrap; }
th { font-weight: 600; } td.words, th.words { text-align: left; white-space: normal; }
img { max-width: 100%; background: white; } .bad { color: #a40000; font-weight: 600; }
"""


def table(records: Sequence[dict], title: str) -> Table:
    """A line for each run."""
    shown = Table(title=title, title_justify="left", box=MINIMAL, padding=0)
    for column in COLUMNS:
        shown.add_column(column.replace(" ", "\n"), justify="right", overflow="fold")  # no wider than figures
    for record in records:
        cells = cells_of(record)
        shown.add_row(*cells[:-1], f"[green]{cells[-1]}" if record["held"] else f"[red]{cells[-1]}")
    return shown


def cells_of(record: dict) -> list[str]:
    """A run in words, a cell for each of `COLUMNS`."""
    gpu = record["gpu"]
    return [
        str(record["sessions"]),
        _parts(record["end_of_turn_to_audio_ms"], "p50", "p95", "p99", "max"),
        _parts(record["barge_in_to_silence_ms"], "p50", "p99", "max"),
        _parts(record["resume_ms"], "p50", "p99", "max"),
        "/".join(str(record[name]["count"]) for name in COUNTED),
        str(record["deadline_misses"]) + (f" ({record['worst_miss_ms']:.0f} ms)" if record["deadline_misses"] else ""),
        _parts(record["lead_ms"], "min", "p50"),
        _parts(record["jitter_ms"], "p99"),
        f"{record['wasted_token_share']:.0%}",
        f"{record['busy']:.0%}",
        f"{record['cpu_share']:.0%}" + (f", GPU {gpu['busy']:.0%}" if gpu else ""),
        "yes" if record["held"] else "no",
    ]


def page(result: dict, pictures: Mapping[str, bytes]) -> str:
    """The whole result as HTML, with `pictures` (PNG, by caption) inside."""
    summary, about, runs = result["summary"], result["environment"], result["runs"]
    tiles = [
        ("end of turn \N{RIGHTWARDS ARROW} first audio, p50", _ms(summary["end_of_turn_to_audio_ms"]["p50"])),
        ("the same, p99", _ms(summary["end_of_turn_to_audio_ms"]["p99"])),
        ("barge-in \N{RIGHTWARDS ARROW} silence, p99", _ms(summary["barge_in_to_silence_ms"]["p99"])),
        ("resume, p99", _ms(summary["resume_ms"]["p99"])),
        ("deadline misses", str(summary["deadline_misses"])),
        ("sessions", str(summary["sessions"])),
        ("tokens wasted", f"{summary['wasted_token_share']:.0%}"),
    ]
    parts = [
        f"<h1>Full duplex: {escape(str(result['model']))}</h1>",
        f'<p class="about">{escape(str(about["device"]))}, torch {escape(str(about["torch"]))}, commit '
        f"{escape(str(about['commit']))}{' with changes' if about['changed'] else ''}; {escape(result['clock'])}; "
        f"{escape(result['talk'])}</p>",
        '<div class="tiles">',
        *(f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>' for what, value in tiles),
        "</div>",
        "<h2>Runs</h2>",
        _table(COLUMNS, [cells_of(record) for record in runs]),
        *_broken(runs),
    ]
    if result["limit"]:
        parts += ["<h2>How many sessions</h2>", f"<p>{escape(limit_in_words(result['limit'], result['clock']))}</p>"]
    if result["soak"]:
        parts += ["<h2>What the calls left behind</h2>", f"<p>{escape(soak_in_words(result['soak']))}</p>"]
    for caption, png in pictures.items():
        data = base64.b64encode(png).decode()
        parts += [f"<h2>{escape(caption)}</h2>", f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">']
    words = [[name, text] for name, text in result["definitions"].items()]
    running = [[name, str(value)] for name, value in (result["running"] | about).items()]
    parts += ["<h2>What is measured</h2>", _table(("figure", "from \N{RIGHTWARDS ARROW} to"), words, words=True)]
    parts += ["<h2>On what</h2>", _table(("", ""), running, words=True)]
    head = f'<meta charset="utf-8"><title>Full duplex: {escape(str(result["model"]))}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def limit_in_words(limit: dict, clock: str) -> str:
    """What was found of how many sessions hold; `clock` is the result's."""
    how = "in simulated time" if clock.startswith("simulated") else clock
    held = f"{limit['sessions_held']} sessions are held {how}, {limit['sessions_within_goals']} within all goals."
    if limit["breaks_at"] is None:
        return f"{held} As many as were tried."
    stages = sorted(limit["stages_there"].items(), key=lambda entry: -entry[1])
    share = ", ".join(f"{kind} {share:.0%}" for kind, share in stages)
    return f"{held} With {limit['breaks_at']}: {'; '.join(limit['first'])}. The engine thread's time there: {share}."


def soak_in_words(soak: dict) -> str:
    """What an hour of calls left behind."""
    memory, pages = soak["rss_mb"], soak["pages"]
    minutes, talked = soak["seconds"] / 60, soak["call_seconds"] / 60
    return (
        f"{minutes:.1f} minutes with {talked:.1f} minutes of calls: {soak['opened']} calls, {soak['vanished']} clients "
        f"that vanished ({soak['reaped']} reaped), {soak['errors']} errors, {soak['evicted_tokens']} tokens evicted. "
        f"Memory {memory['start']:.0f} MB at the start, {memory['middle']:.0f} in the middle, {memory['end']:.0f} at "
        f"the end; {pages['before']} pages free before, {pages['after']} after. {soak['deadline_misses']} deadlines "
        f"missed, {soak['misses_after_start_up']} of them after the first minute."
    )


def _broken(records: Sequence[dict]) -> list[str]:
    found = [
        f'<li class="bad">{counted(record["sessions"], "session")}: {escape("; ".join(record["broken"]))}</li>'
        for record in records
        if record["broken"]
    ]
    return ["<ul>", *found, "</ul>"] if found else []


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], words: bool = False) -> str:
    kind = ' class="words"' if words else ""
    head = "".join(f"<th{kind}>{escape(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'


def _parts(values: dict, *names: str) -> str:
    return "/".join("-" if values[name] is None else f"{values[name]:.0f}" for name in names)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"
