"""Headless Chromium for tests: what a page becomes, looks like, and complains about."""

import html
import re
import shutil
import subprocess
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--enable-logging=stderr",
)
DARK = "--blink-settings=preferredColorScheme=0"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


def run_chromium(folder: Path, *options: str) -> tuple[str, list[str]]:
    """Return what Chromium printed and what pages wrote to its console; skip where it is not."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    profile = f"--user-data-dir={folder / 'profile'}"
    run = subprocess.run(
        [chromium, *OPTIONS, profile, *options], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return html.unescape(run.stdout), re.findall(r".*CONSOLE.*", run.stderr)


@contextmanager
def served(folder: Path):
    """Serve a folder; yield its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
