"""Distributions made by hand: what pip leaves of one, and packages that are the toy family by other names."""

from __future__ import annotations

from pathlib import Path

TOY = Path(__file__).parent / "families" / "xlm_toy"

COMMAND = '''
"""Say hello to a name."""

from xlm.errors import UserError

BARE = "name"
KEYS = {"name": "whom to greet"}


def run(words):
    if not words:
        raise UserError("no name", where="name", fix="write xlm hello NAME")
    print("hello", words[0].removeprefix("name="))
'''


def install(folder, name, target, distribution, *requires, group="xlm.families"):
    """Add an entry point to a distribution, in a folder of ``sys.path``."""
    about = folder / f"{distribution.replace('-', '_')}-1.0.0.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    lines = ["Metadata-Version: 2.1", f"Name: {distribution}", "Version: 1.0.0"]
    (about / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {needed}" for needed in requires), ""]))
    with (about / "entry_points.txt").open("a") as file:
        file.write(f"[{group}]\n{name} = {target}\n")


def write_toy(folder, name):
    """The toy family and its task under another name, with a command; returns its module's folder."""
    module = folder / f"xlm_{name}"
    for file in (file for file in TOY.rglob("*") if file.suffix in (".py", ".yaml")):
        text = file.read_text().replace("toy", name).replace("Toy", name.capitalize())
        copy = module / str(file.relative_to(TOY)).replace("toy", name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text)
    (module / "hello.py").write_text(COMMAND)
    return module


def install_toy(folder, name, *requires, command=None):
    """The same as a distribution ``xlm-NAME`` that offers a family, a task and perhaps a command."""
    module = write_toy(folder, name)
    install(folder, name, module.name, f"xlm-{name}", *requires)
    install(folder, name, module.name, f"xlm-{name}", *requires, group="xlm.tasks")
    if command:
        install(folder, command, f"{module.name}.hello", f"xlm-{name}", *requires, group="xlm.commands")
    return module
