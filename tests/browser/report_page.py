#!/usr/bin/env python3
"""Looks at a report in a real browser: every figure is drawn, no label meets another, nothing is cut
off on a screen or a phone, and nothing is fetched from anywhere.

    report_page.py CHROMIUM REPORT_FOLDER [--screenshots FOLDER]

Speaks the DevTools protocol over a pipe, with the standard library alone.
"""

import argparse
import base64
import json
import os
import pathlib
import subprocess
import sys
import tempfile

WIDTHS = {"desktop": 1280, "phone": 390}
SCHEMES = ("light", "dark")

# What is wrong with the page as it is laid out now; an empty list is a sound page.
FAULTS = r"""
(async () => {
  await document.fonts.ready;
  const faults = [];
  const words = /NaN|Infinity|undefined/;
  if (!document.fonts.check("12px 'DejaVu Sans'")) faults.push("the font is not loaded");
  const overflow = document.documentElement.scrollWidth - window.innerWidth;
  if (overflow > 0) faults.push(`the page is ${overflow} px wider than the window`);
  if (words.test(document.body.textContent)) faults.push(`text: ${document.body.textContent.match(words)[0]}`);
  if (window.innerWidth > 1000) {
    for (const table of document.querySelectorAll(".table")) {
      const hidden = table.scrollWidth - table.clientWidth;
      if (hidden > 0) faults.push(`"${table.innerText.slice(0, 20)}…" scrolls sideways, by ${hidden} px`);
    }
  }
  for (const cell of document.querySelectorAll("td.number")) {
    if (!/\d/.test(cell.textContent)) faults.push("a number is empty");
  }
  const sections = [...document.querySelectorAll("section")];
  if (sections.length === 0) faults.push("no figure at all");
  for (const section of sections) {
    const say = (text) => faults.push(`${section.id}: ${text}`);
    const shown = [...section.querySelectorAll("svg")].filter((svg) => svg.getClientRects().length > 0);
    if (shown.length !== 1) { say(`${shown.length} pictures are shown`); continue; }
    const frame = shown[0].getBoundingClientRect();
    if (frame.width < 250 || frame.height < 150) say(`drawn at ${frame.width} x ${frame.height}`);
    for (const element of shown[0].querySelectorAll("*")) {
      for (const attribute of element.attributes) {
        if (words.test(attribute.value)) say(`${attribute.name}="${attribute.value}"`);
      }
    }
    if (shown[0].querySelectorAll("path, rect").length < 3) say("hardly anything is drawn");
    const texts = [...shown[0].querySelectorAll("text")].map((text) => ({
      words: text.textContent,
      box: text.getBoundingClientRect(),
      size: parseFloat(getComputedStyle(text).fontSize) * frame.width / shown[0].viewBox.baseVal.width,
    }));
    for (const { words, box, size } of texts) {
      if (words.trim() === "") say("an empty label");
      if (size < 9) say(`"${words}" is ${size.toFixed(1)} px high`);
      const out = Math.max(frame.left - box.left, box.right - frame.right, frame.top - box.top, box.bottom - frame.bottom);
      if (out > 1) say(`"${words}" is cut off by ${out.toFixed(1)} px`);
    }
    for (let i = 0; i < texts.length; i++) {
      for (let j = 0; j < i; j++) {
        const [a, b] = [texts[i].box, texts[j].box];
        const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        // A line of text is higher than its letters.
        if (across > 1 && down > 4) say(`"${texts[i].words}" meets "${texts[j].words}"`);
      }
    }
  }
  return faults;
})()
"""


class Browser:
    """One page of a headless browser."""

    def __init__(self, program, profile):
        command_in, self.commands = os.pipe()
        self.answers, answers_out = os.pipe()
        flags = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions",
            "--disable-background-networking", "--disable-component-update", "--no-first-run", "--hide-scrollbars",
            f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip
        # The browser reads commands from descriptor 3 and answers on 4.
        script = f'exec "$@" 3<&{command_in} 4>&{answers_out}'
        self.process = subprocess.Popen(
            ["bash", "-c", script, "bash", program, *flags],
            pass_fds=(command_in, answers_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(command_in)
        os.close(answers_out)
        self.buffer = b""
        self.last_id = 0
        self.session = None
        self.events = []
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        self.last_id += 1
        message = {"id": self.last_id, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.last_id:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def receive(self):
        while b"\0" not in self.buffer:
            chunk = os.read(self.answers, 1 << 20)
            if not chunk:
                raise RuntimeError("the browser has gone")
            self.buffer += chunk
        message, self.buffer = self.buffer.split(b"\0", 1)
        answer = json.loads(message)
        if "method" in answer:
            self.events.append(answer)
        return answer

    def open(self, path):
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.receive()

    def evaluate(self, script):
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(json.dumps(result["exceptionDetails"])[:500])
        return result["result"]["value"]

    def resize(self, width, height, is_phone):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=2 if is_phone else 1, mobile=is_phone,
        )  # fmt: skip

    def prefer(self, scheme):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path):
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))

    def complaints(self):
        """What the page asked of the network, and what the browser had to say of it."""
        faults = []
        for event in self.events:
            params = event["params"]
            if event["method"] == "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith(("file:", "data:")):
                    faults.append(f"fetches {url}")
            elif event["method"] == "Log.entryAdded":
                faults.append(f"the browser says: {params['entry']['text']}")
            elif event["method"] == "Runtime.exceptionThrown":
                faults.append(f"a script failed: {params['exceptionDetails']['text']}")
        return faults

    def close(self):
        self.call("Browser.close")
        self.process.wait(timeout=30)


def look_at_page(browser, report, screenshots):
    faults = []
    for device, width in WIDTHS.items():
        for scheme in SCHEMES:
            browser.resize(width, 844, device == "phone")
            browser.prefer(scheme)
            browser.open(report / "report.html")
            found = browser.evaluate(FAULTS) + browser.complaints()
            faults += [f"report.html, {device}, {scheme}: {fault}" for fault in found]
            if screenshots:
                height = browser.evaluate("document.documentElement.scrollHeight")
                browser.resize(width, height, device == "phone")
                browser.screenshot(screenshots / f"{device}-{scheme}.png")
    return faults


def look_at_figures(browser, report):
    """Each figure's file by itself: the SVG is sound, and the PNG is a picture of the same shape."""
    faults = []
    browser.resize(1280, 844, False)
    figures = sorted((report / "figures").glob("*.svg"))
    if not figures:
        faults.append("no file of a figure")
    for svg in figures:
        browser.open(svg)
        size = browser.evaluate(
            "document.documentElement.localName === 'svg' && !document.querySelector('parsererror')"
            " ? [document.documentElement.viewBox.baseVal.width, document.documentElement.viewBox.baseVal.height] : null"
        )
        faults += [f"{svg.name}: {fault}" for fault in browser.complaints()]
        browser.open(svg.with_suffix(".png"))
        picture = browser.evaluate("(({naturalWidth, naturalHeight}) => [naturalWidth, naturalHeight])(document.images[0])")
        if size is None:
            faults.append(f"{svg.name} is not drawn")
        elif not picture[0] or abs(picture[1] / picture[0] - size[1] / size[0]) > 0.01:
            faults.append(f"{svg.stem}: the SVG is {size}, the PNG {picture}")
    return faults


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("chromium")
    parser.add_argument("report", type=pathlib.Path)
    parser.add_argument("--screenshots", type=pathlib.Path)
    args = parser.parse_args()
    report = args.report.resolve()
    if args.screenshots:
        args.screenshots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(args.chromium, profile)
        try:
            faults = look_at_page(browser, report, args.screenshots) + look_at_figures(browser, report)
        finally:
            browser.close()
    for fault in faults:
        print(fault)
    if faults:
        sys.exit(f"{len(faults)} faults in {args.report}")
    print(f"{args.report}: sound at {', '.join(f'{w} px' for w in WIDTHS.values())}, light and dark")


if __name__ == "__main__":
    main()
