"""JupyterLab as `make lab` starts it, looked at through headless Chromium; tests and benchmarks use it."""

import io
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from chexstudy import paths

_PORT_OPENS_WITHIN = 120
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Software rendering, no calls of the browser's own, and no name but this machine's is ever resolved.
_FLAGS = [
    *("--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    *("--disable-gpu", "--disable-dev-shm-usage", "--ignore-gpu-blocklist"),
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]


class NoBrowser(Exception):
    """There is no Chromium; the message says what to install."""


def find_browser() -> str:
    """Path of a Chromium or Chrome: ``$CHEXSTUDY_BROWSER``, one of the system, or the one Playwright brought."""
    from playwright.sync_api import sync_playwright

    named = os.environ.get("CHEXSTUDY_BROWSER")
    found = [named] if named else [path for path in map(shutil.which, _BROWSERS) if path]
    if not found:
        with sync_playwright() as playwright:
            found = [playwright.chromium.executable_path]
    if not Path(found[0]).exists():
        raise NoBrowser(
            "there is no Chromium: install it (Debian and Ubuntu: `apt install chromium`, elsewhere "
            "`.venv/bin/playwright install chromium`), or name one in CHEXSTUDY_BROWSER."
        )
    return found[0]


def copy_checkout(folder: Path) -> Path:
    """A git checkout of the notebooks and what `make lab` needs, all committed, to be opened and run."""
    for name in ("notebooks", ".jupyter"):
        shutil.copytree(paths.REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name in ("Makefile", ".gitattributes", ".gitignore"):
        shutil.copy(paths.REPOSITORY / name, folder / name)
    git(folder, "init", "--quiet")
    commit_all(folder)
    return folder


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "core.safecrlf=false"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout  # fmt: skip


def commit_all(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "as it was")


def run_make(folder: Path, *targets: str) -> list[str]:
    """The command that makes targets in a copy of the checkout with this interpreter's tools."""
    return ["make", "--no-print-directory", "-C", str(folder), *targets, "STAMP=", f"BIN={Path(sys.executable).parent}"]


@contextmanager
def serve_lab(folder: Path, **environment: str):
    """Start `make lab` in a checkout; yields the address that opens it, with ``{}`` for a path."""
    token = secrets.token_hex(8)
    options = "--no-browser --allow-root --ServerApp.port=0 --LabApp.expose_app_in_browser=True"
    runtime = folder.parent / "jupyter-runtime"
    variables = os.environ | environment | {
        "JUPYTER_TOKEN": token, "JUPYTER_RUNTIME_DIR": str(runtime), "JUPYTER_CONFIG_DIR": str(runtime / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(runtime / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(runtime / "workspaces"),
    }  # fmt: skip
    for name in ("CHEXSTUDY_HEADLESS", "CHEXSTUDY_CWD"):
        variables.pop(name, None)
    with open(folder.parent / "lab.log", "wb") as log:
        server = subprocess.Popen(
            run_make(folder, "lab", f"ARGS={options}"), env=variables, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield f"{_wait_for_server(server, runtime, token)}lab/tree/{{}}?token={token}&reset"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)


def _wait_for_server(server: subprocess.Popen, runtime: Path, token: str) -> str:
    until = time.monotonic() + _PORT_OPENS_WITHIN
    while time.monotonic() < until and server.poll() is None:
        for file in runtime.glob("jpserver-*.json"):
            try:
                url = f"http://127.0.0.1:{json.loads(file.read_text())['port']}/"
                urllib.request.urlopen(f"{url}api/status?token={token}", timeout=5).close()
                return url
            except (OSError, ValueError):
                pass
        time.sleep(0.3)
    raise RuntimeError((runtime.parent / "lab.log").read_text()[-3000:])


@contextmanager
def open_browser():
    """A headless Chromium context that reaches nothing but this machine."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=_FLAGS)
        try:
            yield browser.new_context(viewport={"width": 1500, "height": 1400})
        finally:
            browser.close()


class Page:
    """A notebook open in JupyterLab.

    Attributes:
        requests: addresses that were asked for, whatever came of it.
        problems: uncaught errors of the page.
    """

    def __init__(self, context, address: str, path: str):
        self.requests: list[str] = []
        self.problems: list[str] = []
        self.page = context.new_page()
        self.page.set_default_timeout(120_000)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("websocket", lambda socket: self.requests.append(socket.url))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.address = address.format(path)
        self.load()

    def load(self) -> None:
        """Open the notebook, or open it anew, and wait for its kernel."""
        self.page.goto(self.address)
        self.page.wait_for_selector(".jp-Notebook .jp-Cell")
        self.page.wait_for_function(
            "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
        )

    def command(self, name: str, arguments: dict | None = None) -> None:
        """Run a command of JupyterLab and wait until it is done."""
        self.page.evaluate("([name, given]) => jupyterapp.commands.execute(name, given)", [name, arguments or {}])

    def run_all(self) -> list[dict]:
        """Run all cells; returns the cells with their outputs."""
        self.command("notebook:run-all-cells")
        return self.cells()

    def cells(self) -> list[dict]:
        return self.page.evaluate("() => jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells")

    def save(self) -> None:
        self.command("docmanager:save")

    def restart(self) -> None:
        """Restart the kernel and wait for it."""
        self.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
        self.page.wait_for_function(
            "() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'"
        )

    def picture(self, selector: str) -> np.ndarray:
        """What an element looks like, ``(height, width, 3)`` uint8."""
        element = self.page.locator(selector).first
        element.scroll_into_view_if_needed()
        return np.asarray(Image.open(io.BytesIO(element.screenshot())).convert("RGB"))

    def close(self) -> None:
        """Shut the kernel down and close the page."""
        self.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        self.page.close()
