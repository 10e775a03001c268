"""A real JupyterLab in a real Chromium, for the tests of the widgets.

Both are started once for all tests that ask for ``lab``; where Chromium or the Python package
playwright is missing, those tests are skipped.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parent.parent
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
JUPYTER_FOLDERS = (
    "JUPYTER_CONFIG_DIR",
    "JUPYTER_RUNTIME_DIR",
    "JUPYTER_DATA_DIR",
    "JUPYTERLAB_SETTINGS_DIR",
    "JUPYTERLAB_WORKSPACES_DIR",
    "IPYTHONDIR",
)
SESSION = "window.jupyterapp?.shell?.currentWidget?.context?.sessionContext?.session"
SECONDS = 120  # as long as anything may take on a busy machine


class Notebook:
    """An open notebook whose cells have run: ``page`` in the browser, ``kernel`` beside it."""

    def __init__(self, page: Any, client: Any) -> None:
        self.page, self._client = page, client

    def kernel(self, expression: str) -> Any:
        """The value of an expression in the kernel, such as ``[widget.x]``; it must be JSON."""
        asked = {"value": f"__import__('json').dumps({expression})"}
        reply = self._client.execute(
            "", silent=True, user_expressions=asked, reply=True, timeout=SECONDS
        )
        value = reply["content"]["user_expressions"]["value"]
        assert value["status"] == "ok", f"{expression}: {value.get('evalue')}"
        return json.loads(eval(value["data"]["text/plain"], {"__builtins__": {}}))

    def wait(self, selector: str = "[data-ready='true']") -> Any:
        """The element, once it is there (widgets say ``data-ready`` after their first paint)."""
        found = self.page.locator(selector).first
        found.wait_for(timeout=SECONDS * 1000)
        return found

    def after(self, element: Any, act: Callable[[], Any]) -> None:
        """Do something and wait until the widget has repainted: ``data-seq`` went up."""
        before = int(element.get_attribute("data-seq"))
        act()
        self.until(f"e => Number(e.dataset.seq) > {before}", element)

    def until(self, condition: str, element: Any) -> None:
        """Wait until a JavaScript function of an element gives true."""
        self.page.wait_for_function(
            f"e => ({condition})(e)", arg=element.element_handle(), timeout=SECONDS * 1000
        )

    def pixel(self, canvas: Any, x: float, y: float) -> list[int]:
        """Red, green and blue of a canvas at a place given as shares of its width and height."""
        return canvas.evaluate(
            "(c, [x, y]) => Array.from(c.getContext('2d').getImageData("
            "Math.floor(x * c.width), Math.floor(y * c.height), 1, 1).data).slice(0, 3)",
            [x, y],
        )


class Lab:
    """A running JupyterLab and a browser; :meth:`open` gives a notebook in it."""

    def __init__(self, root: Path, url: str, token: str, runtime: Path, browser: Any) -> None:
        self.root, self.url, self.token = root, url, token
        self.runtime, self.browser = runtime, browser

    def open(self, name: str, *cells: str, dark: bool = False) -> Notebook:
        """Write a notebook of code cells, open it, run them, and see that none failed."""
        import nbformat
        from jupyter_client import BlockingKernelClient

        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(book, self.root / f"{name}.ipynb")
        page = self.browser.new_page()
        page.goto(f"{self.url}lab/tree/{name}.ipynb?token={self.token}&reset")
        page.wait_for_function(f"{SESSION}?.kernel?.status === 'idle'", timeout=SECONDS * 1000)
        if dark:
            page.evaluate(
                "window.jupyterapp.commands.execute('apputils:change-theme', "
                "{theme: 'JupyterLab Dark'})"
            )
        page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        model = "window.jupyterapp.shell.currentWidget.content.model.toJSON().cells"
        assert page.evaluate(f"{model}.length") == len(cells)
        page.wait_for_function(
            f"{model}.every(c => c.execution_count !== null) || {model}.some(c => "
            "c.outputs.some(o => o.output_type === 'error'))",
            timeout=SECONDS * 1000,
        )
        errors = page.evaluate(
            f"{model}.flatMap(c => c.outputs).filter(o => o.output_type === 'error')"
            ".map(o => o.traceback.join('\\n'))"
        )
        assert not errors, re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(errors))
        number = page.evaluate(f"{SESSION}.kernel.id")
        client = BlockingKernelClient(connection_file=str(self.runtime / f"kernel-{number}.json"))
        client.load_connection_file()
        client.start_channels()
        return Notebook(page, client)


def _start_lab(folder: Path) -> tuple[subprocess.Popen, dict[str, str], str]:
    places = {name: str(folder / name.lower()) for name in JUPYTER_FOLDERS}
    settings = Path(places["JUPYTERLAB_SETTINGS_DIR"]) / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    notebook = Path(places["JUPYTERLAB_SETTINGS_DIR"]) / "@jupyterlab" / "notebook-extension"
    notebook.mkdir(parents=True)
    # Outputs out of sight are part of the page, too.
    (notebook / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    (folder / "root").mkdir()
    token = secrets.token_hex(8)
    options = [
        "--no-browser",
        "--allow-root",
        "--ServerApp.ip=127.0.0.1",
        "--ServerApp.port=0",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={folder / 'root'}",
        "--LabApp.expose_app_in_browser=True",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.extension_manager=readonly",
    ]
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options],
        env=os.environ | places | {"PYTHONPATH": path},
        stdout=(folder / "lab.log").open("w"),
        stderr=subprocess.STDOUT,
    )
    return server, places, token


def _address(server: subprocess.Popen, folder: Path, runtime: Path, token: str) -> str:
    """The server's URL, once it answers."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and server.poll() is None:
        try:
            url = json.loads((runtime / f"jpserver-{server.pid}.json").read_text())["url"]
            with urllib.request.urlopen(f"{url}api/status?token={token}", timeout=5):
                return url
        except (OSError, ValueError):
            time.sleep(0.1)
    raise AssertionError(f"JupyterLab did not start:\n{(folder / 'lab.log').read_text()[-3000:]}")


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab and Chromium, for all browser tests of a process."""
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if chromium is None:
        pytest.skip(f"no Chromium on this machine ({', '.join(CHROMIUM)})")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    folder = tmp_path_factory.mktemp("lab")
    server, places, token = _start_lab(folder)
    try:
        runtime = Path(places["JUPYTER_RUNTIME_DIR"])
        url = _address(server, folder, runtime, token)
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch_persistent_context(
                str(folder / "profile"),
                executable_path=chromium,
                headless=True,
                args=CHROMIUM_ARGS,
                viewport={"width": 1400, "height": 1100},
            )
            yield Lab(folder / "root", url, token, runtime, browser)
            browser.close()
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
