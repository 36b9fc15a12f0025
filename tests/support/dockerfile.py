"""What the stages of a Dockerfile say."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Stage:
    """One image: what it says itself, and what the stage says that it is made from."""

    environment: dict[str, str] = field(default_factory=dict)
    directory: str = "/"
    user: str = "root"
    command: list[str] = field(default_factory=list)
    check: list[str] = field(default_factory=list)
    base: str = ""

    def instruct(self, name: str, value: str) -> None:
        """Follow an instruction; commands have to have the exec form, which is JSON."""
        match name:
            case "ENV":
                self.environment |= dict(pair.split("=", 1) for pair in value.split())
            case "WORKDIR":
                self.directory = value
            case "USER":
                self.user = value
            case "CMD":
                self.command = json.loads(value)
            case "HEALTHCHECK":
                self.check = json.loads(value.partition("CMD ")[2])


DOCKERFILE = Path(__file__).parents[2] / "examples/docker/Dockerfile"


def stages(path: Path) -> dict[str, Stage]:
    """The stages by their names, in their order."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", "")
    found: dict[str, Stage] = {}
    for name, value in re.findall(r"^([A-Z]+) +(.+)$", text, re.MULTILINE):
        if name == "FROM":
            base, _, stage = value.partition(" AS ")
            of = found.get(base, Stage(base=base))
            found[stage] = Stage(
                dict(of.environment), of.directory, of.user, list(of.command), list(of.check), of.base
            )
        else:
            [*found.values()][-1].instruct(name, value)
    return found
