"""The page of a run in a real browser: it fits a phone, every picture is there, nothing is fetched."""

import re
import shutil
import subprocess

import pytest
from patience import patience

from bcnet.report.page import Page, details, table, text
from bcnet.report.run_page import write_run_page

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
PROBE = """<script>addEventListener("load", () => {
  const images = [...document.images].map(image => image.naturalWidth > 0);
  const fetched = performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:")).length;
  const shown = images.filter(x => x).length, used = document.documentElement.scrollWidth;
  const cut = [...document.querySelectorAll(".scroll")].filter(one => one.scrollWidth > one.clientWidth).length;
  parent.postMessage(`width=${used}/${innerWidth} images=${shown}/${images.length} cut=${cut} fetched=${fetched}`, "*");
});</script>"""
FRAME = """<iframe src="{page}" width="{width}" height="900" style="border: 0"></iframe>
<script>addEventListener("message", message => {{ document.title = message.data; }});</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1200])  # in a frame: headless Chromium opens no narrower window than 500 pixels
def test_the_page_of_a_run_in_a_browser(run, tmp_path, width):
    run.search("flops=0.5")
    page = write_run_page(run)
    page.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    (tmp_path / "frame.html").write_text(FRAME.format(page=page.as_uri(), width=width))
    window = [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width + 200},900"]
    command = [CHROMIUM, *FLAGS, *window, "--virtual-time-budget=5000", "--dump-dom", (tmp_path / "frame.html").as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=patience(120))
    found = re.search(r"<title>width=(\d+)/(\d+) images=(\d+)/(\d+) cut=(\d+) fetched=(\d+)</title>", result.stdout)
    assert found, result.stderr[-1000:]
    used, available, shown, images, cut, fetched = map(int, found.groups())
    assert used <= available == width
    assert not cut
    assert shown == images == 4
    assert fetched == 0


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_hostile_names_run_nothing_in_a_browser(tmp_path):
    name = "<script>document.title='ran'</script>\"><img src=x onerror=\"document.title='ran'\">"
    page = Page("before", name)
    page.section(name, text(name), table((name,), [(name,)]), details(name, name))
    page.write(tmp_path / "page.html")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    result = subprocess.run([*command, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=patience(120))
    assert "<title>before</title>" in result.stdout, result.stderr[-1000:]
