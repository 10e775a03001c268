"""JupyterLab in Chromium, for the widget tests.

Both are started for the first test that uses the fixture ``lab``, and end after the last. Without
Chromium or the Python package playwright these tests are skipped.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
# Point Jupyter away from the user's settings, which could change what the tests see.
JUPYTER_DIRECTORIES = (
    "JUPYTER_CONFIG_DIR",
    "JUPYTER_RUNTIME_DIR",
    "JUPYTER_DATA_DIR",
    "JUPYTERLAB_SETTINGS_DIR",
    "JUPYTERLAB_WORKSPACES_DIR",
    "IPYTHONDIR",
)
SESSION = "window.jupyterapp?.shell?.currentWidget?.context?.sessionContext?.session"
CODE_CELLS = (
    "window.jupyterapp.shell.currentWidget.content.model.toJSON().cells"
    ".filter(c => c.cell_type === 'code')"
)
SIZE_OF_SAMPLES = 160, 128  # columns and rows of the clips in tests/blobs
SECONDS = 120  # timeout of every wait; generous, because CI machines may be busy


class Notebook:
    """An open notebook whose cells have run: its ``page`` in the browser and its kernel."""

    def __init__(self, page: Any, client: Any) -> None:
        self.page, self._client = page, client
        self.address = page.url.replace("&reset", "")

    def kernel(self, expression: str) -> Any:
        """Evaluate an expression, such as ``[widget.x]``, in the kernel; its value must be JSON."""
        expressions = {"value": f"__import__('json').dumps({expression})"}
        reply = self._client.execute(
            "", silent=True, user_expressions=expressions, reply=True, timeout=SECONDS
        )
        value = reply["content"]["user_expressions"]["value"]
        assert value["status"] == "ok", f"{expression}: {value.get('evalue')}"
        return json.loads(eval(value["data"]["text/plain"], {"__builtins__": {}}))

    def wait(self, selector: str = "[data-ready='true']") -> Any:
        """Wait for an element and return it; widgets set ``data-ready`` after their first paint."""
        element = self.page.locator(selector).first
        element.wait_for(timeout=SECONDS * 1000)
        return element

    def after(self, element: Any, act: Callable[[], Any]) -> None:
        """Call ``act`` and wait until the widget has repainted, which increments ``data-seq``."""
        before = int(element.get_attribute("data-seq"))
        act()
        self.until(f"e => Number(e.dataset.seq) > {before}", element)

    def until(self, condition: str, element: Any) -> None:
        """Wait until a JavaScript function of an element returns true."""
        self.page.wait_for_function(
            f"e => ({condition})(e)", arg=element.element_handle(), timeout=SECONDS * 1000
        )

    def pixel(self, canvas: Any, x: float, y: float) -> list[int]:
        """Read the RGB values of a canvas at ``x``, ``y``, fractions of its width and height."""
        return canvas.evaluate(
            "(c, [x, y]) => Array.from(c.getContext('2d').getImageData("
            "Math.floor(x * c.width), Math.floor(y * c.height), 1, 1).data).slice(0, 3)",
            [x, y],
        )


class View:
    """The annotator in a page: actions, and what it shows."""

    def __init__(self, notebook) -> None:
        self.notebook, self.page = notebook, notebook.page
        self.root = notebook.wait(".sam2kit-annotator[data-ready='true']")
        self.canvas = self.root.locator(".stage canvas")

    def button(self, name):
        return self.root.locator(f"[data-name='{name}']")

    def act(self, action):
        """Call an action and wait until the view has been repainted."""
        self.notebook.after(self.root, action)

    def press(self, key):
        self.act(lambda: self.root.press(key))

    def kernel_has(self, expression, value):
        """Wait until an expression has a value in the kernel."""
        deadline = time.monotonic() + 60
        while self.notebook.kernel(expression) != value and time.monotonic() < deadline:
            self.page.wait_for_timeout(50)
        assert self.notebook.kernel(expression) == value

    def until(self, condition):
        self.notebook.until(condition, self.root)

    def counts(self, kind, number):
        """Wait until the legend of the timeline has a number."""
        self.until(f"e => e.querySelector('[data-count={kind}-{number}]')")

    def at(self, column, row, rect=(0, 0, *SIZE_OF_SAMPLES)):
        """Return the position on the page of a pixel of the frame, of which a part is visible."""
        box = self._steady_box()
        x = box["x"] + (column + 0.5 - rect[0]) / (rect[2] - rect[0]) * box["width"]
        return x, box["y"] + (row + 0.5 - rect[1]) / (rect[3] - rect[1]) * box["height"]

    def _steady_box(self):
        """Scroll to the canvas, and return its rectangle when the page has stopped moving."""
        self.canvas.scroll_into_view_if_needed()
        box = self.canvas.bounding_box()
        for _ in range(100):
            self.page.wait_for_timeout(30)
            previous, box = box, self.canvas.bounding_box()
            if box == previous:
                break
        return box

    def click(self, column, row, button="left", **options):
        x, y = self.at(column, row, **options)
        self.act(lambda: self.page.mouse.click(x, y, button=button))

    def drag(self, start, end, button="left"):
        self.page.mouse.move(*start)
        self.page.mouse.down(button=button)
        self.page.mouse.move(*end, steps=3)
        self.page.mouse.up(button=button)

    def is_colored(self, column, row):
        """Return whether the canvas differs from the frame at a pixel; the frame is not zoomed."""
        position = (column + 0.5) / SIZE_OF_SAMPLES[0], (row + 0.5) / SIZE_OF_SAMPLES[1]
        shown = self.notebook.pixel(self.canvas, *position)
        frame = f"annotator.session.frame(annotator.frame)[{row}, {column}].tolist()"
        plain = self.notebook.kernel(frame)
        return max(abs(a - b) for a, b in zip(shown, plain, strict=True)) > 30

    def cells(self):
        return self.page.locator(".jp-Cell").count()


class Lab:
    """A running JupyterLab and a browser; :meth:`open` opens a notebook."""

    def __init__(self, root: Path, url: str, token: str, runtime: Path, browser: Any) -> None:
        self.root, self.url, self.token = root, url, token
        self.runtime, self.browser = runtime, browser

    def open(self, name: str, *cells: str, dark: bool = False) -> Notebook:
        """Write a notebook of code cells, open it, run them, and check that none failed."""
        import nbformat

        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(book, self.root / f"{name}.ipynb")
        return self.show(f"{name}.ipynb", dark=dark)

    def show(self, path: str, dark: bool = False) -> Notebook:
        """Open an existing notebook, a path below the root, run its cells, and check them."""
        page = self.browser.new_page()
        page.set_default_navigation_timeout(SECONDS * 1000)
        page.goto(f"{self.url}lab/tree/{path}?token={self.token}&reset")
        page.wait_for_function(f"{SESSION}?.kernel?.status === 'idle'", timeout=SECONDS * 1000)
        if dark:
            page.evaluate(
                "window.jupyterapp.commands.execute('apputils:change-theme', "
                "{theme: 'JupyterLab Dark'})"
            )
        return self._run(page)

    def reopen(self, notebook: Notebook) -> Notebook:
        """Kill the kernel of a notebook, reload its page, and run its cells again."""
        old = notebook.kernel("__import__('os').getpid()")
        notebook.page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
        os.kill(old, signal.SIGKILL)
        notebook.page.goto("about:blank")
        notebook.page.goto(notebook.address)
        notebook.page.wait_for_function(
            f"{SESSION}?.kernel?.status === 'idle'", timeout=SECONDS * 1000
        )
        new = self._run(notebook.page)
        assert new.kernel("__import__('os').getpid()") != old
        return new

    def _run(self, page: Any) -> Notebook:
        """Run all cells of the notebook of a page, and check that none failed."""
        from jupyter_client import BlockingKernelClient

        page.evaluate("window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
        page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait_for_function(
            f"{CODE_CELLS}.length && {CODE_CELLS}.every(c => c.execution_count !== null) || "
            f"{CODE_CELLS}.some(c => c.outputs.some(o => o.output_type === 'error'))",
            timeout=SECONDS * 1000,
        )
        errors = page.evaluate(
            f"{CODE_CELLS}.flatMap(c => c.outputs).filter(o => o.output_type === 'error')"
            ".map(o => o.traceback.join('\\n'))"
        )
        assert not errors, re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(errors))
        # A second client of the same kernel, so that tests can read the state of a widget.
        kernel_id = page.evaluate(f"{SESSION}.kernel.id")
        client = BlockingKernelClient(
            connection_file=str(self.runtime / f"kernel-{kernel_id}.json")
        )
        client.load_connection_file()
        client.start_channels()
        return Notebook(page, client)


def _start_lab(folder: Path) -> tuple[subprocess.Popen, dict[str, str], str]:
    """Start JupyterLab; return its process, its directories and its token."""
    directories = {name: str(folder / name.lower()) for name in JUPYTER_DIRECTORIES}
    settings = Path(directories["JUPYTERLAB_SETTINGS_DIR"]) / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    notebook = Path(directories["JUPYTERLAB_SETTINGS_DIR"]) / "@jupyterlab" / "notebook-extension"
    notebook.mkdir(parents=True)
    # By default JupyterLab removes outputs outside the viewport from the page.
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
        env=os.environ | directories | {"PYTHONPATH": path},
        stdout=(folder / "lab.log").open("w"),
        stderr=subprocess.STDOUT,
    )
    return server, directories, token


def _address(server: subprocess.Popen, folder: Path, runtime: Path, token: str) -> str:
    """Wait until the server responds and return its URL."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            url = json.loads((runtime / f"jpserver-{server.pid}.json").read_text())["url"]
            with urllib.request.urlopen(f"{url}api/status?token={token}", timeout=5):
                return url
        except (OSError, ValueError):
            time.sleep(0.1)
    raise AssertionError(f"JupyterLab did not start:\n{(folder / 'lab.log').read_text()[-3000:]}")


@contextmanager
def running_lab(folder: Path) -> Iterator[Lab]:
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if chromium is None:
        pytest.skip(f"no Chromium on this machine ({', '.join(CHROMIUM)})")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    server, directories, token = _start_lab(folder)
    try:
        runtime = Path(directories["JUPYTER_RUNTIME_DIR"])
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


# The running JupyterLab, if any; the exit stack ends it.
_running: list[tuple[Lab, ExitStack]] = []


@pytest.fixture
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """JupyterLab and Chromium, which consecutive tests share."""
    if not _running:
        stack = ExitStack()
        running = stack.enter_context(running_lab(tmp_path_factory.mktemp("lab")))
        _running.append((running, stack))
    return _running[0][0]


def stop_lab() -> None:
    """End JupyterLab, its kernels and Chromium, if they are running."""
    while _running:
        _running.pop()[1].close()
