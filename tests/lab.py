"""A real JupyterLab and a real browser, for the browser tests and the redraw benchmark."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from playwright.sync_api import ConsoleMessage, Locator, Page, sync_playwright

COURSE = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WEBKIT = shutil.which("Xvfb") and shutil.which("WebKitWebDriver")
TOKEN = "a-token-for-the-tests"

# Said by JupyterLab itself or by the closed network, not by a lesson.
NOT_OURS = re.compile(r"favicon|ERR_INTERNET_DISCONNECTED|ERR_NAME_NOT_RESOLVED|ResizeObserver loop", re.IGNORECASE)


def free_port() -> int:
    """A port of this computer that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def served(command: Iterable[object], address: str, seconds: float = 60, **options: object) -> Iterator[Path]:
    """Run a server until the block ends; yield its log once `address` answers.

    Args:
        command: that starts it.
        address: that answers when it is ready.
        seconds: how long that may take.
        options: of `subprocess.Popen`.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with log.open("w") as stream:
            server = subprocess.Popen(list(map(str, command)), stdout=stream, stderr=stream, **options)
        try:
            deadline = time.monotonic() + seconds
            while not _answers(address):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"No answer at {address}:\n{log.read_text()}")
                time.sleep(0.2)
            yield log
        finally:
            server.terminate()
            server.wait(60)


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def jupyterlab(root: Path, **environment: str) -> Iterator[str]:
    """Serve `root` as the learner's command does, in an environment with some changes; yield the server's address."""
    port = free_port()
    command = [sys.executable, "-m", "qtutor.cli", "lab", "--no-browser", f"--port={port}", "--allow-root"]
    command += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={root}", "--ServerApp.port_retries=0"]
    command += ["--LabApp.expose_app_in_browser=True"]
    address = f"http://127.0.0.1:{port}"
    with served(command, f"{address}/api?token={TOKEN}", cwd=COURSE, env={**os.environ, **environment}):
        yield address


# On a busy computer two seconds pass before a page has loaded a widget. This page is always that busy.
BUSY = """
    const timeout = AbortSignal.timeout.bind(AbortSignal);
    AbortSignal.timeout = milliseconds => timeout(milliseconds === 2000 ? 1 : milliseconds);
"""


@contextlib.contextmanager
def empty_page(width: int = 1360, height: int = 1000) -> Iterator[Page]:
    """Open an empty page in headless Chromium."""
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    arguments += ["--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(120_000)  # a busy computer takes longer, and nothing else
            page.add_init_script(BUSY)
            yield page
        finally:
            browser.close()


@contextlib.contextmanager
def webkit(address: str) -> Iterator[Callable]:
    """Open a page in WebKit without a window; yield what runs the body of a function in it, with arguments."""
    port = free_port()
    driver = f"http://127.0.0.1:{port}"

    def call(path: str, **content: object) -> object:
        asked = urllib.request.Request(f"{driver}{path}", json.dumps(content).encode())
        with urllib.request.urlopen(asked, timeout=300) as answer:
            return json.load(answer)["value"]

    with subprocess.Popen(
        ["Xvfb", "-displayfd", "1"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as screen:
        try:
            surroundings = {"DISPLAY": f":{screen.stdout.readline().strip()}", "WEBKIT_DISABLE_DMABUF_RENDERER": "1"}
            surroundings["WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS"] = "1"  # root has none in a container
            with served([WEBKIT, f"--port={port}"], f"{driver}/status", env={**os.environ, **surroundings}):
                session = f"/session/{call('/session', capabilities={})['sessionId']}"
                call(f"{session}/url", url=address)
                yield lambda body, *arguments: call(f"{session}/execute/sync", script=body, args=arguments)
        finally:
            screen.terminate()


class Notebook:
    """A notebook open in JupyterLab, which a page loads once for all the notebooks that it opens."""

    def __init__(self, page: Page, address: str, path: str):
        self.page = page
        self.path = Path(path)
        self.errors: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        if page.url.startswith(address):
            page.evaluate("async path => { await jupyterapp.commands.execute('docmanager:open', {path}); }", path)
        else:
            page.goto(f"{address}/lab/workspaces/test-{time.time_ns()}/tree/{path}?token={TOKEN}")
        page.wait_for_function(
            """path => {
                const open = window.jupyterapp?.shell.currentWidget;
                return open?.context?.path === path && open.sessionContext?.session?.kernel?.status === 'idle';
            }""",
            arg=path,
            timeout=120_000,
        )

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not NOT_OURS.search(f"{message.text} {message.location.get('url', '')}"):
            self.errors.append(message.text)

    def run_all(self, timeout: float = 400) -> None:
        """Run every cell, wait for the last, and save."""
        for command in ("notebook:run-all-cells", "docmanager:save"):
            self.page.evaluate(
                "command => { jupyterapp.commands.execute(command).then(() => { window.done = command; }); }", command
            )
            self.page.wait_for_function("command => window.done === command", arg=command, timeout=1000 * timeout)

    def close(self) -> None:
        """Close it and end its kernel."""
        self.page.evaluate(
            """async () => {
                const open = jupyterapp.shell.currentWidget;
                await open.sessionContext.shutdown();
                open.context.model.dirty = false;
                open.dispose();
            }"""
        )

    def show(self, cell: int) -> None:
        """Scroll a cell into view; JupyterLab attaches cells to the page only when they come near."""
        self.page.evaluate(
            """async cell => {
                const notebook = jupyterapp.shell.currentWidget.content;
                notebook.activeCellIndex = cell;
                await notebook.scrollToItem(cell, 'start');
            }""",
            cell,
        )

    def explorer(self) -> Locator:
        """Wait until the explorer of the cell that was shown last is drawn at its final width."""
        explorer = self.page.locator(".jp-Cell.jp-mod-active .qtutor-explorer")
        explorer.locator('.js-plotly-plot[aria-label="Figure"]').wait_for()
        return explorer
