"""A headless Chromium without a network, driven through its debugging protocol; and a server for the book."""

import asyncio
import functools
import http.server
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tornado.websocket import WebSocketClientConnection, websocket_connect

NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine; yields its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Browser:
    """One tab. `errors` and `requests` hold what the present page complained about and asked for."""

    def __init__(self, connection: WebSocketClientConnection, loop: asyncio.AbstractEventLoop):
        self._connection = connection
        self._loop = loop
        self._count = 0
        self.errors: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and return its result, noting the events that arrive before it."""
        return self._loop.run_until_complete(asyncio.wait_for(self._exchange(method, parameters), timeout=60))

    async def _exchange(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._count += 1
        await self._connection.write_message(
            json.dumps({"id": self._count, "method": method, "params": parameters})
        )
        while True:
            text = await self._connection.read_message()
            if text is None:
                raise RuntimeError("the browser closed the connection")
            answer = json.loads(text)
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        method, details = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(details["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled" and details["type"] in ("error", "assert"):
            self.errors.append(json.dumps(details["args"])[:500])
        elif method == "Log.entryAdded" and details["entry"]["level"] == "error":
            self.errors.append(f"{details['entry']['text']} {details['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:1000])
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Wait until a JavaScript condition holds."""
        end = time.monotonic() + seconds
        while not self.run(condition):
            if time.monotonic() > end:
                raise TimeoutError(f"{condition} does not hold after {seconds} s; errors: {self.errors}")
            time.sleep(0.05)

    def resize(self, width: int) -> None:
        """Give the window another width."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )

    def visit(self, address: str, width: int = 1200, theme: str = "light") -> None:
        """Open a page in a window of some width and wait until its charts and formulas are there."""
        self.resize(width)
        self.send("Page.navigate", url="about:blank")
        self.wait("location.href === 'about:blank' && document.readyState === 'complete'")
        self.errors, self.requests = [], []
        source = f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}');"
        script = self.send("Page.addScriptToEvaluateOnNewDocument", source=source)["identifier"]
        self.send("Page.navigate", url=address)
        self.wait("location.href !== 'about:blank' && document.readyState === 'complete'")
        self.wait(
            "!document.querySelector('div.chart') || document.documentElement.dataset.charts === 'drawn'"
        )
        self.wait("!document.querySelector('.math') || Boolean(window.MathJax?.startup?.promise)")
        self.run("window.MathJax?.startup?.promise?.then(() => true)")
        self.send("Page.removeScriptToEvaluateOnNewDocument", identifier=script)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium with an empty profile, in which no name but this machine's can be resolved.

    Raises `FileNotFoundError` where no Chromium is installed.
    """
    names = (os.environ.get("CHROMIUM", ""), *NAMES)
    program = next((found for name in names if (found := shutil.which(name))), None)
    if program is None:
        raise FileNotFoundError("the browser tests need Chromium: apt-get install chromium, or set CHROMIUM")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--disable-dev-shm-usage",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                "--remote-debugging-port=0",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        loop = asyncio.new_event_loop()
        try:
            connection = loop.run_until_complete(_connect(Path(profile)))
            yield Browser(connection, loop)
            connection.close()
        finally:
            process.terminate()
            process.wait(timeout=30)
            loop.close()


async def _connect(profile: Path) -> WebSocketClientConnection:
    from tornado.httpclient import AsyncHTTPClient

    note = profile / "DevToolsActivePort"
    for _ in range(600):
        if note.exists() and "\n" in note.read_text():
            break
        await asyncio.sleep(0.05)
    port = note.read_text().splitlines()[0]
    answer = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/json")
    tab = next(each for each in json.loads(answer.body) if each["type"] == "page")
    return await websocket_connect(tab["webSocketDebuggerUrl"], max_message_size=2**28)
