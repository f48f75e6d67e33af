"""Name and version of the package: pip installs it under this name, Python imports ``xent``."""

NAME = "crossentropy"  # as in pyproject.toml; a test compares the two
VERSION = "0.2.0"  # pyproject.toml takes the version from this line


def pip_install(extra: str) -> str:
    """Return the command that installs what an extra needs."""
    return f"pip install '{NAME}[{extra}]'"


def not_installed(package: str | None, extra: str) -> str:
    """Return the message for a package of an extra that is missing."""
    return f"{package} is not installed ({pip_install(extra)})"
