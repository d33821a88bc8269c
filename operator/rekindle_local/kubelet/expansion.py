"""`$(VAR)` in command, args and env values, as Kubernetes defines it.

A known name is replaced, an unknown one stays as written, and `$$` is a literal `$`, so
`$$(VAR)` comes out as `$(VAR)`. Expansion happens once: values are not expanded again.
"""

from collections.abc import Mapping


def expand(text: str, variables: Mapping[str, str]) -> str:
    """`text` with its references replaced."""
    if "$" not in text:
        return text
    out: list[str] = []
    position = 0
    while (dollar := text.find("$", position)) >= 0 and dollar + 1 < len(text):
        out.append(text[position:dollar])
        following = text[dollar + 1]
        if following == "$":
            out.append("$")
            position = dollar + 2
        elif following == "(" and (end := text.find(")", dollar)) >= 0:
            name = text[dollar + 2 : end]
            out.append(variables.get(name, text[dollar : end + 1]))
            position = end + 1
        else:
            out.append(text[dollar : dollar + 2])
            position = dollar + 2
    out.append(text[position:])
    return "".join(out)
