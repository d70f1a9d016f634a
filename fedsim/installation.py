"""Which distribution this is, and whether another project's has taken the same folder.

On the public index the name `fedsim` belongs to an unrelated project, so this one is published as `fedsim-audit`. Both have a
package `fedsim`, and whichever is installed last overwrites files of the other.
"""

from __future__ import annotations

from importlib.metadata import Distribution, PackageNotFoundError, distribution

from fedsim.errors import FedsimError

NAME = "fedsim-audit"
"""What pip calls this distribution."""

RECORDED = "fedsim"
"""What records call it, whichever name it was installed by: they were written before it had two."""


def recorded(name: str | None) -> str | None:
    """Return what records call a distribution."""
    return RECORDED if name == NAME else name


def check() -> None:
    """Refuse to work beside the other project called fedsim, and beside this one under its earlier name.

    Raises:
        FedsimError: one of them is installed.
    """
    found = _installed(RECORDED)
    if found is None:
        return
    if _is_foreign(found):
        raise FedsimError(
            f"the distribution {RECORDED} {found.version}, an unrelated project, is installed too, and files of the two "
            f"overwrite each other. Remove both (pip uninstall {RECORDED} {NAME}), then install {NAME} again."
        )
    if _installed(NAME) is not None:
        raise FedsimError(
            f"this project is installed twice, as {NAME} and under its earlier name, {RECORDED} {found.version}. Remove the "
            f"latter (pip uninstall {RECORDED}), then install {NAME} again."
        )


def _installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _is_foreign(found: Distribution) -> bool:
    # Earlier versions of this project were installed under that name.
    return not any(point.group == "fedsim.attacks" for point in found.entry_points)
