"""The pages in a real browser, where there is one: what a click, a key or a word in the filter does, narrow and wide."""

import base64
import hashlib
import html
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from runs import write_run

from fedsim.comparing import compare
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

WIDTHS = (360, 1440)

# A page in a frame tells what it is like at that width, once a table is sorted by its first column, downwards.
TELLS = """
addEventListener("load", () => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const reached = (target) => { target.focus(); return target.tabIndex === 0 && document.activeElement === target; };
  all("details").forEach((details) => { details.open = true; });
  const controls = all("button, summary, input, a[href], [tabindex]").filter((one) => one.checkVisibility());
  const unreached = controls.filter((one) => !reached(one)).map((one) => one.outerHTML.slice(0, 80));
  const table = document.querySelector("#SORTED table"), sort = table.querySelector("thead button");
  const names = () => [...table.tBodies].flatMap((body) => [...body.rows]).map((row) => row.cells[0].textContent);
  const orders = [names()];
  sort.click(); sort.click();
  orders.push(names());
  const beyond = document.documentElement.scrollWidth - innerWidth;
  parent.postMessage({ width: innerWidth, beyond, controls: controls.length, unreached, orders }, "*");
});
"""
# Around the frames; its error is the control, which shows that errors are heard.
LISTENS = """<title>waits</title><script>
const found = [];
addEventListener("message", ({ data }) => {
  found.push(data);
  if (found.length === document.querySelectorAll("iframe").length) document.title = JSON.stringify(found);
});
throw new Error("the control");
</script>"""


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


def _with_script(page: Path, script: str, to: Path, other: str = "") -> Path:
    """Write a page with a script that its policy lets in by a digest, as it lets in no other."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = page.read_text(encoding="utf-8").replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    to.write_text(text.replace("</body>", f"<script>{script}</script>{other}</body>"), encoding="utf-8")
    return to


def _shown(browser: Path, page: Path) -> tuple[Any, str, str]:
    """Return what a page says in its title, its elements, and what the browser says of it."""
    profile = f"--user-data-dir={page.parent}/profile"
    command = [browser, *pdf._FLAGS, "--no-sandbox", profile, "--virtual-time-budget=2000", "--enable-logging=stderr"]
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, timeout=60, check=True)
    dumped = done.stdout.decode()
    title = html.unescape(dumped.partition("<title>")[2].partition("</title>")[0])
    return json.loads(title), dumped, done.stderr.decode()


def test_a_reader_sorts_filters_enlarges_slides_and_asks(run: Path, browser: Path, tmp_path: Path) -> None:
    other = "<script>document.body.dataset.intruder = 'in'</script>"
    acting = _with_script(run / "report.html", ACTS, tmp_path / "acting.html", other)
    found, dumped, _ = _shown(browser, acting)
    assert 'data-intruder="in"' not in dumped
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


def test_report_and_comparison_fit_any_width_without_an_error_and_answer_to_keys(run, browser, tmp_path) -> None:
    runs = [
        write_run(tmp_path / f"{number}-{seed}", seed=seed, defenses=carried)
        for number, carried in enumerate(([], ["clips"]))
        for seed in range(3)
    ]
    compare(runs, tmp_path / "comparison", 1.0)
    pages = {"attempts": run / "report.html", "family-1": tmp_path / "comparison" / "compare.html"}
    frames = ""
    for place, page in pages.items():
        framed = _with_script(page, TELLS.replace("SORTED", place), tmp_path / f"{place}.html")
        frames += "".join(f'<iframe src="{framed.name}" width="{width}" height="800"></iframe>' for width in WIDTHS)
    around = tmp_path / "around.html"
    around.write_text(LISTENS + frames, encoding="utf-8")
    found, _, said = _shown(browser, around)
    told = [line for line in said.splitlines() if "CONSOLE" in line]
    assert len(told) == 1 and "the control" in told[0], told
    assert sorted(one["width"] for one in found) == sorted(2 * WIDTHS)
    for one in found:
        assert one["beyond"] <= 0 and one["controls"] > 10 and one["unreached"] == []
        assert one["orders"][0] != one["orders"][1] and sorted(one["orders"][0]) == sorted(one["orders"][1])


def test_a_report_is_printed(run: Path, browser: Path) -> None:
    assert pdf.printed(run / "report.html", browser, 60.0).startswith(b"%PDF")
