"""docs/images/demo.svg: what `rekindle demo` prints, as a picture of a terminal.

    python docs/record_demo.py           runs the demo and draws it, which takes a minute
    python docs/record_demo.py FILE      draws what was printed before

The lines are those of a real run, with one seed, so that moment and victim of the preemption are the
same again; times are the machine's. Lines that say the same again (checkpoints, steps, stragglers
of a small machine) are left out, and a dim line says where.
"""

import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

PICTURE = Path(__file__).parent / "images" / "demo.svg"
SEED = 3
COLUMNS = 104
FEW = 2
"""Lines of one kind that are shown before others of it are left out."""
THEME = TerminalTheme(
    (24, 26, 31),
    (214, 218, 226),
    [(24, 26, 31), (240, 113, 120), (126, 211, 133), (250, 200, 99), (104, 168, 250), (199, 146, 234),
     (98, 203, 212), (214, 218, 226)],
    [(110, 116, 128), (255, 139, 148), (152, 232, 158), (255, 217, 128), (137, 190, 255),
     (219, 172, 247), (128, 224, 232), (255, 255, 255)],
)  # fmt: skip
OFTEN = (re.compile(r"^\S+ step \d+/"), re.compile(r"checkpoint of step \d+ committed$"))
NEVER = re.compile(r"Straggler|Use --real-s3|Recovering: recovering")
STYLES = (
    (r"^\d\d:\d\d:\d\d", "bright_black"),
    (r"spot reclaim: .*", "bold yellow"),
    (r"told to go away", "yellow"),
    (r"preempted at step \d+", "bold red"),
    (r"checkpoint of step \d+ committed(, at the step that all pods agreed on)?", "green"),
    (r"training goes on from step \d+, 0 steps lost", "bold green"),
    (r"round \d+ \([^)]*\)", "bold blue"),
    (r"Succeeded", "bold green"),
    (r"^(Job|Steps lost|Steps|Round \d|Incident|Resumed from|Samples|Final metric|Goodput|Total time)\b", "cyan"),
    (r"0 repeated, 0 missed \(proven by the ledger\)", "bold green"),
)  # fmt: skip
# The figure itself; no font is loaded from anywhere.
FORMAT = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: {char_height}px;
 line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g></g></svg>
"""


def printed() -> str:
    """What the demo prints; it has to succeed."""
    command = [sys.executable, "-m", "rekindle_cli", "demo", "--seed", str(SEED)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    return done.stderr + done.stdout


def chosen(text: str) -> list[str]:
    """The lines that are shown; an empty text in place of some that are not."""
    seen, found = [0] * len(OFTEN), list[str]()
    for line in text.strip().splitlines():
        if NEVER.search(line):
            continue
        kind = next((index for index, one in enumerate(OFTEN) if one.search(line)), None)
        if kind is not None:
            seen[kind] += 1
            if seen[kind] > FEW:
                if found[-1] != "...":
                    found.append("...")
                continue
        found.append(line)
    return found


def draw(lines: list[str]) -> str:
    """The picture."""
    with Path("/dev/null").open("w") as nowhere:
        console = Console(
            record=True, width=COLUMNS, file=nowhere, force_terminal=True, color_system="truecolor"
        )
        console.print(Text("$ rekindle demo", style="bold"))
        for line in lines:
            text = Text("         ..." if line == "..." else line)
            if line == "...":
                text.stylize("bright_black")
            for pattern, style in STYLES:
                text.highlight_regex(pattern, style)
            console.print(text)
        return console.export_svg(
            title="rekindle demo", theme=THEME, code_format=FORMAT, unique_id="demo"
        )


if __name__ == "__main__":
    text = Path(sys.argv[1]).read_text() if sys.argv[1:] else printed()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(draw(chosen(text)))
