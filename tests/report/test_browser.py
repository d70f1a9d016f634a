"""The script of the page in a real browser, where there is one: what a click, a key or a word in the filter does."""

import base64
import hashlib
import html
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from fedsim.report import pdf, render

GOLDEN = Path(__file__).parents[1] / "golden"
SHOWN = (0, 10, 40)

# What a reader would do, told in the page's own elements; the result stands in the title.
ACTS = """
addEventListener("load", async () => {
  const one = (selector, from = document) => from.querySelector(selector);
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const key = (target, name) => target.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
  const tick = () => new Promise((done) => setTimeout(done, 30));
  const found = {};
  const rows = () => all("#attempts tbody tr").map((row) => row.id);
  const place = all("#attempts thead th").findIndex((head) => head.textContent === "Status");
  const head = all("#attempts thead th")[place], sort = one("button", head);
  found.orders = [head.getAttribute("aria-sort")];
  found.rows = [rows()];
  for (let time = 0; time < 3; time++) {
    sort.click();
    found.orders.push(head.getAttribute("aria-sort"));
    found.rows.push(rows());
  }
  found.status = all("#attempts tbody tr").map((row) => row.cells[place].textContent);
  sort.click();
  found.sorted = all("#attempts tbody tr").map((row) => row.cells[place].textContent);
  const clients = () => all(".overview tbody").filter((body) => !body.hidden).map((body) => body.id);
  const skill = all(".overview thead button")[5];
  skill.click(); skill.click();
  found.clients = clients();
  const filter = one("#attempts .filter input");
  found.closed = !one("#attempts").open;
  filter.value = "client-that-is-not-there"; filter.dispatchEvent(new Event("input"));
  found.none = [rows().filter((id) => !document.getElementById(id).hidden).length, one("#attempts output").textContent];
  location.hash = "attempt-1"; await tick();
  found.revealed = one("#attempts").open && !one("#attempt-1").hidden;
  const zoom = one("#pictures .zoom");
  zoom.focus(); zoom.click();
  found.dialog = [one("dialog").open, one("dialog img").src === one("img", zoom).src];
  one("dialog button").click();
  found.closedAgain = !one("dialog").open;
  const slider = one(".player input");
  found.iterates = [one(".player output").textContent];
  slider.value = 0; slider.dispatchEvent(new Event("input"));
  found.iterates.push(one(".player output").textContent, one(".player .frame img").style.marginLeft);
  const plot = one("#rounds svg");
  key(plot, "ArrowRight");
  found.tip = [one(".tip").textContent, one(".tip").hidden];
  key(plot, "Escape");
  found.tip.push(one(".tip").hidden, all("title", plot).length);
  const before = getComputedStyle(document.body).backgroundColor;
  one(".theme").click();
  found.theme = [before, getComputedStyle(document.body).backgroundColor];
  const named = (button) => button.textContent.trim() || button.getAttribute("aria-label");
  found.unnamed = all("button").filter((button) => !named(button)).length;
  found.wide = document.documentElement.scrollWidth > innerWidth;
  document.title = JSON.stringify(found);
});
"""


@pytest.fixture(scope="module")
def run(browser: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of the stored run with a second pair of clients, and trajectories of three iterates."""
    folder = Path(shutil.copytree(GOLDEN / "run", tmp_path_factory.mktemp("browser") / "run"))
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    for line in lines:
        if "reconstructions" in line["artifacts"]:
            path = f"artifacts/round-{line['round']:04d}/client-{line['client']:03d}/trajectory.png"
            Image.new("RGB", (4 * 32 + 4, 32), "navy").save(folder / path)
            line["film"] = {"steps": SHOWN, "losses": [1, 0.5, 0.1], "psnr": [8.0, 12.0, 21.5], "shown": SHOWN}
            line["artifacts"]["film"] = path
    lines += [{**line, "client": line["client"] + 2} for line in lines]
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    render(folder)
    return folder


def test_a_reader_sorts_filters_enlarges_slides_and_asks(run: Path, browser: Path, tmp_path: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(ACTS.encode()).digest()).decode()
    # The policy lets the actor in by its digest, and no other script.
    text = text.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    acting = tmp_path / "acting.html"
    other = "<script>document.body.dataset.intruder = 'in'</script>"
    acting.write_text(text.replace("</body>", f"<script>{ACTS}</script>{other}</body>"), encoding="utf-8")
    command = [
        browser,
        *pdf._FLAGS,
        "--no-sandbox",
        f"--user-data-dir={tmp_path}/profile",
        "--virtual-time-budget=2000",
    ]
    done = subprocess.run([*command, "--dump-dom", acting.as_uri()], capture_output=True, timeout=60, check=True)
    dumped = done.stdout.decode()
    assert 'data-intruder="in"' not in dumped
    found = json.loads(html.unescape(dumped.partition("<title>")[2].partition("</title>")[0]))
    assert found["orders"] == ["none", "ascending", "descending", "none"]
    assert found["rows"][0] == found["rows"][3] and sorted(found["rows"][1]) == sorted(found["rows"][0])
    assert found["sorted"] == sorted(found["status"]) != found["status"]
    assert found["clients"][0] in ("client-0", "client-2")
    assert found["closed"] and found["none"] == [0, f"0 of {len(found['status'])} shown"] and found["revealed"]
    assert found["dialog"] == [True, True] and found["closedAgain"]
    assert found["iterates"] == ["Iteration 40: PSNR 21.5 dB", "Iteration 0: PSNR 8.0 dB", "0px"]
    assert found["tip"][0].startswith("Client ") and found["tip"][1:] == [False, True, 0]
    assert found["theme"] == ["rgb(255, 255, 255)", "rgb(20, 23, 27)"]
    assert found["unnamed"] == 0 and not found["wide"]


def test_a_report_is_printed(run: Path, browser: Path) -> None:
    assert pdf.printed(run / "report.html", browser, 60.0).startswith(b"%PDF")
