"""What starting up imports: heavy packages only where they are used."""

import json
import subprocess
import sys

SCRIPT = """
import contextlib, io, json, sys

def loaded(names):
    return sorted(set(names.split()) & set(sys.modules))

from fedsim import cli

sys.argv = ["fedsim", "--help"]
with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
    cli.main()
first = loaded("torch timm flwr ray numpy scipy matplotlib")
import fedsim.data.batches, fedsim.data.hub, fedsim.data.torchvision_sets

second = loaded("datasets torchvision flwr_datasets")
import fedsim.simulation

third = loaded("ray datasets flwr_datasets pandas matplotlib scipy.stats skimage.metrics lpips opacus jinja2")
print(json.dumps([printed.getvalue(), first, second, third, "timm" in sys.modules]))
"""


def test_help_the_sources_of_data_and_a_simulation_import_nothing_heavy_that_they_do_not_use():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    printed, of_help, of_sources, of_simulation, control = json.loads(done.stdout)
    assert "Usage" in printed
    assert of_help == []
    assert of_sources == []
    assert of_simulation == []
    assert control, "the names of loaded modules are not seen"
