"""architecture/tree.md: every room and module with the first sentence of its docstring."""

from generator.source import Module, cell, modules, prose, sentence, table

TITLES = {
    "rekindle": ("runtime/rekindle", "The data plane: what users import, and what pods run."),
    "rekindle_operator": ("operator/rekindle_operator", "The control plane."),
    "rekindle_local": ("operator/rekindle_local", "The embedded cluster for laptops and tests."),
    "rekindle_cli": ("operator/rekindle_cli", "The `rekindle` command."),
}


def tree() -> str:
    """Every room and module with one sentence."""
    text = (
        "# The tree\n\nEvery folder and module with the first sentence of its docstring. "
        "[Where things happen](walks.md) is the shorter way in.\n\n```text\n"
        "pyproject.toml     one distribution with extras operator, runtime, local, docs, dev, bench; all tool settings\n"
        "constraints.txt    the releases of all dependencies that images, CI and the commands of README install\n"
        "Dockerfile         two targets: operator, runtime\n"
        "crds/              trainingjob.yaml: the API with schema, defaults, CEL rules, printer columns; the one source of it\n"
        "charts/rekindle/   Helm chart: operator, rights, CRD copy, monitors, alert rules\n"
        "operator/          a folder, never a package: operator is a module of the standard library\n"
        "runtime/           what pods run: the package rekindle, and examples that run in the tests\n"
        "tests/             one folder for each package; nothing but pip packages is needed\n"
        "docs/              these pages; generate.py makes the reference and this page\n"
        ".ci/               what CI runs: run, clients, newest, lock\n```\n"
    )
    for package, (folder, words) in TITLES.items():
        text += f"\n## {folder}\n\n{words}\n"
        rooms: dict[str, list[Module]] = {}
        for module in modules().values():
            if module.package != package:
                continue
            is_room = module.path.name == "__init__.py"
            room = module.name if is_room else module.name.rpartition(".")[0]
            rooms.setdefault(room, [])
            if not is_room:
                rooms[room].append(module)
        for room, inside in sorted(rooms.items()):
            if room in modules():
                text += f"\n### {room}\n\n{prose(sentence(modules()[room].doc))}\n"
            if inside:
                rows = [(f"`{one.path.name}`", cell(sentence(one.doc))) for one in inside]
                text += "\n" + table(("module", "what it is"), rows)
    return text
