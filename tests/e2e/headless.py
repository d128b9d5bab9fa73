"""Headless Chromium for tests in Python: remote-browser.mjs does what it is told."""

import contextlib
import json
import pathlib
import subprocess

import harness

SHOTS = pathlib.Path(harness.BUILD) / "e2e"
FAILED_REQUEST = "Failed to load resource"


class Browser:
    """Pages by name; all that is done, is done to the one that was named last."""

    def __init__(self, shots):
        self.shots, self.page = shots, ""
        program = pathlib.Path(__file__).with_name("remote-browser.mjs")
        self.process = subprocess.Popen(["node", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, what, **more):
        self.process.stdin.write(json.dumps({"do": what, "page": self.page, **more}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer["ok"]

    def to(self, page):
        self.page = page
        return self

    def text(self, selector):
        return self("eval", code=f"document.querySelector({json.dumps(selector)}).innerText")

    def wait(self, code, timeout_s=30):
        try:
            self("wait", code=code, timeout_s=timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{code}\nthe page: {self.text('body')[:3000]}") from None

    def state(self, name):
        self.wait(f"document.documentElement.dataset.state === '{name}'")

    def accessible(self):
        found = self("axe")
        assert not found, "\n".join(found)

    def unhurt(self, *more):
        """Nothing on the console but what Chromium itself says of a request that failed (the first one, signed out)."""
        allowed = (FAILED_REQUEST, *more)
        errors = [text for text in self("errors") if not any(a in text for a in allowed)]
        assert not errors, errors

    def look(self, name):
        """Pictures at both widths and in the dark; nothing is cut off sideways."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        for width in (1280, 360):
            self("size", width=width, height=900)
            self.wait("new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(() => resolve(true))))")
            over = self("eval", code="document.documentElement.scrollWidth - innerWidth")
            assert over <= 0, f"{name} is {over} px wider than {width} px"
            self("shot", path=str(SHOTS / f"{self.shots}-{name}-{width}.png"))
        self("size", width=1280, height=900)
        self("shot", path=str(SHOTS / f"{self.shots}-{name}-dark.png"), dark=True)

    def close(self):
        self.process.stdin.close()
        self.process.wait(20)


@contextlib.contextmanager
def browser(shots="dashboard"):
    b = Browser(shots)
    try:
        yield b
    finally:
        b.close()
