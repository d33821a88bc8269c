"""reference/trainingjob.md: fields, rules and columns of the CRD."""

from collections.abc import Iterator
from typing import Any

import yaml

from generator.source import ROOT, cell, prose, table


def fields_of(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """All fields below a schema: path, schema, whether it has to be given."""
    for name, child in (schema.get("properties") or {}).items():
        below = f"{path}.{name}" if path else name
        yield below, child, name in schema.get("required", ())
        yield from fields_of(child, below)
        if isinstance(child.get("items"), dict):
            yield from fields_of(child["items"], f"{below}[]")


def kind_of(schema: dict[str, Any]) -> str:
    """A field's type in a few words."""
    if schema.get("x-kubernetes-int-or-string"):
        return "integer or string"
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"list of {kind_of(schema['items'])}"
    if "additionalProperties" in schema:
        return f"map of {kind_of(schema['additionalProperties'])}"
    return kind


def bounds_of(schema: dict[str, Any]) -> str:
    """What else is known of a field's value."""
    found = []
    if "enum" in schema:
        found.append(" \\| ".join(f"`{one}`" for one in schema["enum"]))
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None or high is not None:
        found.append(f"{'' if low is None else low} to {'' if high is None else high}".strip())
    if schema.get("nullable"):
        found.append("`null`")
    return ", ".join(found)


def default_of(schema: dict[str, Any], required: bool) -> str:
    """A field's default."""
    if "default" in schema and schema["default"] != {}:
        value = schema["default"]
        shown = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True)
        return f"`{shown.strip().removesuffix('...').strip()}`"
    return "required" if required else ""


def trainingjob() -> str:
    """Fields of the CRD."""
    crd = yaml.safe_load((ROOT / "crds" / "trainingjob.yaml").read_text())
    (version,) = crd["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    group, names = crd["spec"]["group"], crd["spec"]["names"]
    text = (
        f"# TrainingJob\n\n`apiVersion: {group}/{version['name']}`, `kind: {names['kind']}`, short "
        f"name `{names['shortNames'][0]}`. {schema['description']}\n\n"
        "`kubectl explain trainingjob.spec --recursive` shows the same on a cluster. What is wrong "
        "in a manifest is refused at `kubectl apply`, with the field and the fix.\n"
    )
    spec = schema["properties"]["spec"]
    text += "\n## spec\n"
    for name, child in spec["properties"].items():
        required = name in spec["required"]
        head = [kind_of(child), bounds_of(child), default_of(child, required)]
        head[2] = f"default {head[2]}" if head[2].startswith("`") else head[2]
        text += f"\n### spec.{name}\n\n*{', '.join(one for one in head if one)}*\n\n"
        text += prose(child.get("description", "")) + "\n"
        rows = [
            (
                f"`{path}`",
                kind_of(one),
                bounds_of(one),
                default_of(one, must),
                cell(one.get("description", "")),
            )
            for path, one, must in fields_of(child, "")
        ]
        if rows:
            text += "\n" + table(("field", "type", "allowed", "default", "what it is"), rows)
        refusals = [rule["message"] for rule in rules_of(child)]
        if refusals:
            text += "\nRefused with:\n\n" + "".join(f"- {prose(one)}\n" for one in refusals)
    refusals = [
        rule["message"] for one in (schema, spec) for rule in one["x-kubernetes-validations"]
    ]
    text += "\n### Rules across fields\n\n" + "".join(f"- {prose(one)}\n" for one in refusals)
    status = schema["properties"]["status"]
    text += f"\n## status\n\n{status['description']} `accounting` in it is not for people.\n\n"
    rows = [
        (f"`{path}`", kind_of(one), cell(one.get("description", "")) or bounds_of(one))
        for path, one, _ in fields_of(status, "")
        if not path.startswith("accounting")
    ]
    text += table(("field", "type", "what it is"), rows)
    rows = [
        (column["name"], f"`{column['jsonPath']}`", cell(column.get("description", "")))
        for column in version["additionalPrinterColumns"]
    ]
    text += "\n## Columns of kubectl get\n\n" + table(("column", "from", "what it is"), rows)
    return text + "\nROUND and MESSAGE are shown with `-o wide`.\n"


def rules_of(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """CEL rules of a schema and of all below it, each message once."""
    seen = set()
    for one in (schema, *(child for _, child, _ in fields_of(schema, ""))):
        for rule in one.get("x-kubernetes-validations", ()):
            if rule["message"] not in seen:
                seen.add(rule["message"])
                yield rule
