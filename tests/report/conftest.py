from pathlib import Path

import pytest

from fedsim.errors import FedsimError
from fedsim.report import pdf


@pytest.fixture(scope="session")
def browser() -> Path:
    """Return a browser that runs without a display; what needs one is skipped where there is none."""
    try:
        return pdf.browser()
    except FedsimError as error:
        pytest.skip(str(error))
