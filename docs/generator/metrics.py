"""reference/metrics.md: every metric, from the call that makes it."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from generator.source import Module, cell, documented, modules, name_of, table, text_of

WHOSE = {
    "rekindle_operator": "Operator",
    "rekindle": "Training pods",
}


KINDS = {
    "Counter": "counter",
    "Gauge": "gauge",
    "Histogram": "histogram",
    "GaugeMetricFamily": "gauge",
    "CounterMetricFamily": "counter",
    "Family": "gauge",
}


@dataclass
class Metric:
    """One metric, from the call that makes it."""

    name: str
    kind: str
    words: str
    labels: list[str] = field(default_factory=list)
    more: str = ""


def metrics_of(module: Module) -> Iterator[Metric]:
    """The metrics that a module makes."""
    behind = {id(value): doc for _, _, value, doc in documented(module.tree.body) if value}
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call) or name_of(node.func) not in KINDS or len(node.args) < 2:
            continue
        name, words = text_of(node.args[0]), text_of(node.args[1])
        if not name or not words or not name.startswith("rekindle_"):
            continue
        kind, labels = KINDS[name_of(node.func)], []
        for one in [*node.args[2:], *(k.value for k in node.keywords if k.arg == "labels")]:
            if isinstance(one, ast.List):
                labels = ast.literal_eval(one)
            elif isinstance(one, ast.Dict) and one.keys and one.keys[0] is not None:
                labels = re.findall(r'(\w+)="', ast.unparse(one.keys[0]))
        for keyword in node.keywords:
            if keyword.arg == "kind":
                kind = text_of(keyword.value) or kind
        if kind == "counter":
            name = name.removesuffix("_total") + "_total"
        yield Metric(name, kind, words, labels, behind.get(id(node), ""))


def metrics() -> str:
    """Everything that Prometheus gets."""
    text = (
        "# Metrics\n\nThe operator serves `/metrics` on port 8431, every training pod on port 9430 "
        "(named `rkd-metrics`). `monitoring.enabled` of the chart makes a PodMonitor for each, and "
        "[alert rules](../operations/alerts.md). No label has more values than a fixed list, causes "
        "or reasons; names of jobs are labels of the scrape, not of the operator's metrics.\n"
    )
    for package, title in WHOSE.items():
        rows: dict[str, Metric] = {}
        for module in modules().values():
            if module.package == package:
                for one in metrics_of(module):
                    rows.setdefault(one.name, one)
        text += f"\n## {title}\n\n"
        text += table(
            ("metric", "kind", "labels", "what it is"),
            [
                (f"`{one.name}`", one.kind, ", ".join(f"`{label}`" for label in one.labels),
                 cell(f"{one.words.rstrip('.')}. {one.more}".strip()))
                for _, one in sorted(rows.items())
            ],
        )  # fmt: skip
    return text + (
        "\nWorkers write, and the pod's agent serves: what both know, such as `rekindle_step`, is "
        "the agent's figure. Gauges about the run come from the pod's first worker.\n"
    )
