# SPDX-License-Identifier: Apache-2.0
"""Drives a headless Chromium by the WebDriver protocol.

The driver that comes with the browser speaks JSON over HTTP; no package is
needed. Source: W3C, WebDriver (addresses and bodies of its commands).
"""

import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request

import pytest

CHROMIUM = next(
    filter(
        None,
        map(shutil.which, ("chromium", "chromium-browser", "google-chrome")),
    ),
    None,
)
DRIVER = shutil.which("chromedriver")
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_ENTER = "\ue007"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--hide-scrollbars",
    "--disable-dev-shm-usage",
)


def skip_without():
    """Skips a test where the browser or its driver is missing."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip(
            "needs Debian's chromium and chromium-driver: "
            f"{('chromedriver' if CHROMIUM else 'chromium')} is not installed"
        )


class Browser:
    """One window with one page."""

    def __init__(self, address):
        self._address = address

    def _call(self, path, body=None, method=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._address + path,
            data,
            {"Content-Type": "application/json"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(
                error.read().decode("utf-8", "replace")
            ) from error

    def begin(self, options):
        """Opens the window."""
        always = {"browserName": "chrome", "goog:chromeOptions": options}
        session = self._call(
            "/session", {"capabilities": {"alwaysMatch": always}}
        )
        self._address += "/session/" + session["sessionId"]

    def end(self):
        self._call("", method="DELETE")

    def open(self, address):
        self._call("/url", {"url": address})

    def run(self, script, *arguments):
        """What a script returns; arguments[0] is the first one."""
        return self._call(
            "/execute/sync", {"script": script, "args": list(arguments)}
        )

    def wait_for(self, condition):
        """Until a JavaScript expression is true; at most half a minute."""
        for _ in range(300):
            if self.run(f"return Boolean({condition})"):
                return
            time.sleep(0.1)
        raise AssertionError(
            f"{condition} did not become true on the "
            f"page:\n{self.run('return document.body.innerText')}"
        )

    def _emulate(self, setting, **parameters):
        self._call(
            "/goog/cdp/execute",
            {"cmd": "Emulation." + setting, "params": parameters},
        )

    def resize(self, width, height):
        """Sets the page's size, as on a telephone's screen."""
        self._emulate(
            "setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=True,
        )

    def darken(self):
        """Shows the page as for a user who prefers dark colours."""
        dark = {"name": "prefers-color-scheme", "value": "dark"}
        self._emulate("setEmulatedMedia", features=[dark])

    def _find(self, selector):
        return self._call(
            "/element", {"using": "css selector", "value": selector}
        )[_ELEMENT]

    def type(self, selector, text):
        """Keys typed into an emptied field."""
        path = f"/element/{self._find(selector)}"
        self._call(path + "/clear", {})
        self._call(path + "/value", {"text": text})

    def press_enter(self, selector):
        self._call(f"/element/{self._find(selector)}/value", {"text": _ENTER})

    def click(self, selector):
        self._call(f"/element/{self._find(selector)}/click", {})

    def point_at(self, selector):
        """Moves the mouse over an element."""
        move = {
            "type": "pointerMove",
            "x": 0,
            "y": 0,
            "duration": 0,
            "origin": {_ELEMENT: self._find(selector)},
        }
        mouse = {"type": "pointer", "id": "mouse", "actions": [move]}
        self._call("/actions", {"actions": [mouse]})


# [[text, its colour, the backgrounds from its own outwards], ...] of each
# element that contains text.
_COLOURS = """
return Array.from(document.querySelectorAll("body *")).filter(element =>
  element.offsetParent && element.tagName !== "SCRIPT" && Array.from(
    element.childNodes).some(node => node.nodeType === 3 && node.data.trim())
).map(element => {
  const backgrounds = [];
  for (let e = element; e; e = e.parentElement)
    backgrounds.push(getComputedStyle(e).backgroundColor);
  return [element.textContent.trim().slice(0, 40),
          getComputedStyle(element).color, backgrounds];
})"""


def contrasts(browser):
    """[(text, contrast with its background)] of a page's visible words."""
    return [
        (text, _contrast(colour, next(filter(_is_opaque, backgrounds))))
        for text, colour, backgrounds in browser.run(_COLOURS)
    ]


def _is_opaque(colour):
    return _channels(colour)[3:] != [0.0]


def _channels(colour):
    """[red, green, blue] and, of a transparent colour, alpha."""
    return [float(number) for number in re.findall(r"[\d.]+", colour)]


def _contrast(first, second):
    """Source: W3C, WCAG 2.1, "contrast ratio"."""
    light, dark = sorted(map(_luminance, (first, second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour):
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (number / 255 for number in _channels(colour)[:3])
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@contextlib.contextmanager
def opened(profile):
    """A Browser with an empty profile directory."""
    skip_without()
    with subprocess.Popen(
        [DRIVER, "--port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        universal_newlines=True,
    ) as driver:
        try:
            port = next(
                filter(
                    None,
                    (
                        re.search(r"started successfully on port (\d+)", line)
                        for line in driver.stdout
                    ),
                )
            )
            browser = Browser("http://127.0.0.1:" + port.group(1))
            browser.begin(
                {
                    "binary": CHROMIUM,
                    "args": list(FLAGS) + [f"--user-data-dir={profile}"],
                }
            )
            try:
                yield browser
            finally:
                browser.end()
        finally:
            driver.terminate()
