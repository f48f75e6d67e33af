"""``xent info``: versions, the machine, the engines, the optional extras."""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import shlex
import subprocess
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import torch

from .. import __version__
from .._package import NAME
from ..engines import core, triton
from .console import say, say_json
from .page import table

EXTRAS = {
    "plot": ("matplotlib", "numpy"),
    "cli": ("rich", "rich_argparse", "shtab"),
    "train": ("tqdm",),
    "search": ("cma",),
    "learn": ("scipy", "sklearn", "gymnasium", "pyarrow"),
    "boosting": ("lightgbm", "xgboost"),
    "transformers": ("transformers",),
    "examples": ("numba", "statsmodels"),
    "bench": ("jax", "optax", "kornia", "mpmath"),
}
FOLDER = Path(__file__).parents[3]  # a folder of sources, or one that holds site-packages
UNKNOWN = "FOLDER_OF_THE_SOURCES_OF_XENT"
WITHOUT_CORE = """\
The compiled core is missing. Everything works all the same, through the reference engine, only
slower. To get the core, reinstall where a C++17 compiler is on the path:
    pip install --force-reinstall --no-deps --no-cache-dir {source}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``xent info``."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print what is installed."""
    facts = collect()
    if args.json:
        say_json(facts)
    else:
        say(describe(facts))
    return 0


def collect() -> dict[str, Any]:
    """Collect facts about versions, machine, engines and extras, as plain types."""
    return {
        "xent": __version__,
        "commit": _commit(FOLDER),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "core": {
            "available": core.available(),
            "instruction_set": core.isa,
            "instruction_sets": core.isas(),
            "threaded": core.threaded,
        },
        "pool": {"bound_mib": core.pool.bound >> 20, "held_mib": core.pool.held >> 20},
        "triton": {"installed": triton.INSTALLED, "gpus": _gpus()},
        "extras": {
            extra: {module: importlib.util.find_spec(module) is not None for module in modules}
            for extra, modules in EXTRAS.items()
        },
    }


def _commit(folder: Path) -> str | None:
    """Return the commit of a checkout; None for another folder, or without git."""
    if not (folder / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def describe(facts: dict[str, Any]) -> str:
    """Return the facts as a table for people."""
    rows = [(name, str(facts[name])) for name in ("xent", "python", "torch", "platform", "threads")]
    rows.append(("compiled core", _describe_core(facts["core"])))
    rows.append(("kept memory", _describe_pool(facts["pool"])))
    rows.append(("Triton, for GPUs", _describe_triton(facts["triton"])))
    rows += [(f"extra [{name}]", _describe_extra(mods)) for name, mods in facts["extras"].items()]
    text = table(rows, head=False)
    if facts["core"]["available"]:
        return text
    return f"{text}\n\n{WITHOUT_CORE.format(source=_source())}"


def _source() -> str:
    """Return what pip compiles: the sources that xent came from, or the sdist by its name.

    A wheel tells only where it lay. What ``make`` builds lies inside the folder of its sources.
    """
    if _holds_sources(FOLDER):
        return f"-e {shlex.quote(str(FOLDER))}"
    try:
        told = distribution(NAME).read_text("direct_url.json")
    except PackageNotFoundError:
        return UNKNOWN
    if told is None:  # from an index
        return f"--no-binary {NAME} {NAME}"
    origin = json.loads(told)
    if "vcs_info" in origin:
        kind, commit = origin["vcs_info"]["vcs"], origin["vcs_info"]["commit_id"]
        return shlex.quote(f"{kind}+{origin['url']}@{commit}")
    url = urlsplit(origin["url"])
    path = Path(url2pathname(url.path))
    if path.suffix != ".whl":  # a folder or an sdist
        return shlex.quote(str(path) if url.scheme == "file" else origin["url"])
    found = next(filter(_holds_sources, path.parents), None) if url.scheme == "file" else None
    return UNKNOWN if found is None else shlex.quote(str(found))


def _holds_sources(folder: Path) -> bool:
    return (folder / "pyproject.toml").is_file() and (folder / "src" / "xent").is_dir()


def _describe_core(core: dict[str, Any]) -> str:
    if not core["available"]:
        return "missing; the reference engine does everything"
    pool = "on torch's threads" if core["threaded"] else "on one thread: torch's pool was not found"
    offered = ", ".join(core["instruction_sets"])
    return f"{core['instruction_set']} (this machine can run {offered}), {pool}"


def _describe_pool(pool: dict[str, int]) -> str:
    if not pool["bound_mib"]:
        return "none; page faults of large gradients take as long as the loss (XENT_POOL_MIB)"
    bound, held = pool["bound_mib"], pool["held_mib"]
    return f"at most {bound} MiB, for the gradients of later calls (XENT_POOL_MIB); {held} MiB now"


def _gpus() -> list[str]:
    return [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]


def _describe_triton(facts: dict[str, Any]) -> str:
    gpus = ", ".join(facts["gpus"]) or "no GPU"
    if facts["installed"]:
        return f"installed; {gpus}"
    return f"missing; on GPUs the reference engine does everything ({gpus})"


def _describe_extra(modules: dict[str, bool]) -> str:
    return ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in modules.items())
