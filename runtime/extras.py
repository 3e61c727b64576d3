"""How an optional part of the package is installed, for messages that ask for it."""


def install(extra: str) -> str:
    """The command that installs an extra of `pyproject.toml`, in an environment with spiritrt and in a clone."""
    return f"pip install 'spiritrt[{extra}]' (in a clone: pip install --no-build-isolation -e '.[{extra}]')"
